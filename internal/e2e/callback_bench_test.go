package e2e_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	goredis "github.com/redis/go-redis/v9"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
)

const benchTokens = 1000 // credentials that are asked for

var (
	benchRounds  = flag.Int("rounds", 5, "rounds of the callback's benchmark")
	benchSeconds = flag.Int("seconds", 4, "length of one load in a round")
)

// bareEnv makes this test binary a bare server instead: "constant" answers with
// the same bytes as a token server, "get" reads them from Redis first; the others
// are those of [observed].
const bareEnv = "E2E_BARE"

// bare is the baseline: net/http, and nothing that is ours.
func bare(kind string) {
	var handler http.Handler
	switch kind {
	case "measured", "unmeasured":
		handler = observed(kind)
	default:
		handler = baseline(kind)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	panic(server.Serve(listener))
}

func baseline(kind string) http.HandlerFunc {
	token := strings.Repeat("x", 806)
	client := goredis.NewClient(&goredis.Options{Addr: os.Getenv("E2E_REDIS")})
	return func(w http.ResponseWriter, r *http.Request) {
		body := token
		if kind == "get" {
			value, err := client.Get(r.Context(), "bare").Result()
			if err != nil {
				http.Error(w, "", http.StatusInternalServerError)
				return
			}
			body = value
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = io.WriteString(w, body)
	}
}

func startBare(b *testing.B, kind, redis string, env ...string) (address string, pid int) {
	b.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(append(os.Environ(), bareEnv+"="+kind, "E2E_REDIS="+redis), env...)
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	return lines.Text(), command.Process.Pid
}

// contestant is a server under load.
type contestant struct {
	name   string
	base   string
	pid    int
	signed bool
	paths  []string

	rates, p50, p99, p999, costs []float64
}

// BenchmarkCallback loads the token server, with all its checks and metrics on,
// beside a handler that returns the same bytes and one that reads them from
// Redis: the same requests, in turn, in the same run. It needs wrk.
func BenchmarkCallback(b *testing.B) {
	v := newVault(b, benchTokens, "--appendfsync", "no")
	if err := v.redis.Client().Set(b.Context(), "bare", strings.Repeat("x", 806), 0).Err(); err != nil {
		b.Fatal(err)
	}
	tokenServer := func(name string, paths []string, env ...string) *contestant {
		p, base, _ := v.tokenServer(env...)
		return &contestant{name: name, base: base, pid: p.command.Process.Pid, signed: env != nil && strings.Contains(env[0], "SECRETS"), paths: paths}
	}
	baseline := func(name, kind string, paths []string, signed bool) *contestant {
		address, pid := startBare(b, kind, v.redis.Addr)
		return &contestant{name: name, base: "http://" + address, pid: pid, signed: signed, paths: paths}
	}
	secrets := "RECALL_VERIFICATION_SECRETS=" + verification
	one := v.paths[:1]
	all := []*contestant{
		baseline("bare handler", "constant", one, false),
		tokenServer("token server, one URL", one),
		baseline("bare handler, signed requests", "constant", one, true),
		tokenServer("token server, one URL, signed", one, secrets),
		baseline("bare handler, 1,000 URLs", "constant", v.paths, false),
		tokenServer("token server, 1,000 URLs", v.paths),
		baseline("bare handler, 1,000 URLs, signed", "constant", v.paths, true),
		tokenServer("token server, 1,000 URLs, signed", v.paths, secrets),
		baseline("handler with one GET", "get", v.paths, false),
		tokenServer("token server, nothing in memory", v.paths, "CACHE_SIZE=1"),
	}
	for b.Loop() {
		for range *benchRounds {
			for _, c := range all {
				c.load(b)
			}
		}
	}
	report(b, all)
}

// report prints a table in which every second contestant is judged by the one
// before it.
func report(b *testing.B, all []*contestant) {
	b.Helper()
	out := &strings.Builder{}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\trequests/s\tratio\tp50\tp99\tratio\tp99.9\tprocessor\tRSS")
	for i, c := range all {
		base := all[i/2*2]
		_, _ = fmt.Fprintf(table, "%s\t%.0f\t%.3f\t%.2f ms\t%.2f ms\t%.2f\t%.2f ms\t%.1f µs\t%d MiB\n", c.name,
			middle(c.rates), middle(c.rates)/middle(base.rates), middle(c.p50), middle(c.p99), middle(c.p99)/middle(base.p99),
			middle(c.p999), middle(c.costs), residentOf(b, c.pid)>>20)
	}
	_ = table.Flush()
	fmt.Println("\n" + out.String()) // a log of a benchmark is cut off
}

// BenchmarkRotating loads a token server that has 100,000 credentials in memory
// while they are renewed all the time, each renewal by another process: what is
// in memory is dropped, and read again.
func BenchmarkRotating(b *testing.B) {
	const credentials = 100_000
	v := newVault(b, credentials, "--appendfsync", "no")
	p, base, _ := v.tokenServer()
	c := &contestant{name: "no renewals", base: base, pid: p.command.Process.Pid, paths: v.paths}
	c.load(b) // into memory
	for len(c.rates) == 1 || c.rates[len(c.rates)-1]*float64(*benchSeconds) < credentials {
		c.load(b)
		if len(c.rates) > 5 {
			break
		}
	}
	*c = contestant{name: c.name, base: c.base, pid: c.pid, paths: c.paths}
	all := []*contestant{c}
	for b.Loop() {
		for range *benchRounds {
			c.load(b)
		}
		for _, rate := range []int{300, 1000} {
			busy := &contestant{name: fmt.Sprint(rate, " renewals/s"), base: base, pid: c.pid, paths: c.paths}
			stop := v.rotate(rate)
			for range *benchRounds {
				busy.load(b)
			}
			b.Logf("%d renewals a second were asked for, %.0f made", rate, stop())
			all = append(all, c, busy)
		}
	}
	report(b, all[1:])
}

// rotate gives random grants new tokens, so many a second, until the returned
// function is called, which returns how many it was.
func (v *vault) rotate(rate int) (stop func() float64) {
	ctx, cancel := context.WithCancel(context.Background())
	began := time.Now()
	var done atomic.Int64
	var running sync.WaitGroup
	const workers = 4
	for range workers {
		running.Go(func() {
			for tick := time.NewTicker(workers * time.Second / time.Duration(rate)); ctx.Err() == nil; done.Add(1) {
				<-tick.C
				v.renew(v.paths[rand.IntN(len(v.paths))], strings.Repeat("y", 806))
			}
		})
	}
	return func() float64 {
		cancel()
		running.Wait()
		return float64(done.Load()) / time.Since(began).Seconds()
	}
}

// BenchmarkPush measures how long it takes until a change that one process has
// made is seen by another.
func BenchmarkPush(b *testing.B) {
	const changes = 2000
	v := newVault(b, 100)
	seen := &watcher{live: make(chan struct{}), changed: make(chan grant.ID, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { v.other().Subscribe(ctx, seen) })
	defer running.Wait()
	defer cancel()
	<-seen.live
	var took []float64
	for b.Loop() {
		for i := range changes {
			path := v.paths[i%len(v.paths)]
			address, _ := callback.ParsePath(path)
			began := time.Now()
			v.renew(path, "x")
			for id := range seen.changed {
				if id == address.ID {
					break
				}
			}
			took = append(took, time.Since(began).Seconds()*1000)
		}
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2], "p50-ms")
	b.ReportMetric(took[len(took)*99/100], "p99-ms")
	b.ReportMetric(took[len(took)-1], "worst-ms")
}

type watcher struct {
	live    chan struct{}
	changed chan grant.ID
}

func (w *watcher) Synced()                { close(w.live) }
func (w *watcher) Invalidate(id grant.ID) { w.changed <- id }
func (w *watcher) Desynced(error)         {}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// load sends requests for some seconds, as fast as they are answered.
func (c *contestant) load(b *testing.B) {
	b.Helper()
	headers := ""
	if c.signed {
		webhook, err := standardwebhooks.NewWebhook(verification)
		if err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		signature, err := webhook.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", now, nil)
		if err != nil {
			b.Fatal(err)
		}
		headers = fmt.Sprintf(`headers["webhook-id"] = "msg_p5jXN8AQM9LWM0D4loKWxJek"
headers["webhook-timestamp"] = "%d"
headers["webhook-signature"] = "%s"
`, now.Unix(), signature)
	}
	script := filepath.Join(b.TempDir(), "load.lua")
	text := "local headers = {}\n" + headers + `local requests, n = {}, 0
init = function()
  for path in io.lines("` + filepath.Join(filepath.Dir(script), "paths") + `") do requests[#requests + 1] = wrk.format("GET", path, headers) end
end
request = function()
  n = n % #requests + 1
  return requests[n]
end
done = function(summary, latency)
  print(string.format("result %f %f %f %f %d %d", summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, summary.requests,
    summary.errors.status + summary.errors.read + summary.errors.timeout + summary.errors.connect))
end
`
	for name, content := range map[string]string{script: text, filepath.Join(filepath.Dir(script), "paths"): strings.Join(c.paths, "\n")} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	cpu := processorOf(b, c.pid)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "wrk", "-t1", "-c32", fmt.Sprint("-d", *benchSeconds, "s"), "--latency", "-s", script, c.base).Output()
	if err != nil {
		b.Fatalf("wrk: %v (on Debian: apt-get install wrk)", err)
	}
	cpu = processorOf(b, c.pid) - cpu
	_, result, ok := strings.Cut(string(output), "result ")
	var rate, p50, p99, p999 float64
	var requests, errs int
	if n, err := fmt.Sscan(result, &rate, &p50, &p99, &p999, &requests, &errs); !ok || n != 6 {
		b.Fatalf("wrk said nothing to the point: %v", err)
	}
	if errs > 0 {
		b.Fatalf("%s: %d of %d requests failed", c.name, errs, requests)
	}
	c.rates, c.p50, c.p99, c.p999 = append(c.rates, rate), append(c.p50, p50), append(c.p99, p99), append(c.p999, p999)
	c.costs = append(c.costs, float64(cpu.Microseconds())/float64(requests))
}

// residentOf is the memory that a process has, in bytes (proc(5), statm).
func residentOf(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}
