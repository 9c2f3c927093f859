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

const benchCredentials = 1000

var (
	benchRounds  = flag.Int("rounds", 5, "rounds of a benchmark with wrk")
	benchSeconds = flag.Int("seconds", 4, "length of one load in a round, in seconds")
)

// baselineEnv makes this test binary serve as a baseline. "constant" returns the same
// bytes as a token server, and "get" reads them from Redis first. [instrumentedHandler]
// has the other kinds.
const baselineEnv = "E2E_BASELINE"

// serveBaseline serves the handler of a kind with net/http. It does not return.
func serveBaseline(kind string) {
	var handler http.Handler
	switch kind {
	case "measured", "unmeasured":
		handler = instrumentedHandler(kind)
	default:
		handler = baselineHandler(kind)
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

func baselineHandler(kind string) http.HandlerFunc {
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

// startBaseline runs this test binary as a baseline and returns its address.
func startBaseline(b *testing.B, kind, redis string, env ...string) (address string, pid int) {
	b.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(append(os.Environ(), baselineEnv+"="+kind, "E2E_REDIS="+redis), env...)
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

// subject is a server under load, with a value of each measurement for each load.
type subject struct {
	name   string
	base   string
	pid    int
	signed bool
	paths  []string

	rates, p50, p99, p999, costs []float64
}

// BenchmarkCallback compares the token server, with all checks and metrics, with a
// handler that returns the same bytes and with one that reads them from Redis. Each gets
// the same requests, alternately, in one run. It requires wrk.
func BenchmarkCallback(b *testing.B) {
	v := newFixture(b, benchCredentials, "--appendfsync", "no")
	if err := v.redis.Client().Set(b.Context(), "bare", strings.Repeat("x", 806), 0).Err(); err != nil {
		b.Fatal(err)
	}
	tokenServer := func(name string, paths []string, env ...string) *subject {
		p, base, _ := v.tokenServer(env...)
		return &subject{name: name, base: base, pid: p.command.Process.Pid, signed: env != nil && strings.Contains(env[0], "SECRETS"), paths: paths}
	}
	baseline := func(name, kind string, paths []string, signed bool) *subject {
		address, pid := startBaseline(b, kind, v.redis.Addr)
		return &subject{name: name, base: "http://" + address, pid: pid, signed: signed, paths: paths}
	}
	secrets := "RECALL_VERIFICATION_SECRETS=" + verification
	one := v.paths[:1]
	all := []*subject{
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

// report prints a table. Its ratios compare every second subject with the previous one.
func report(b *testing.B, all []*subject) {
	b.Helper()
	out := &strings.Builder{}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\trequests/s\tratio\tp50\tp99\tratio\tp99.9\tCPU\tRSS")
	for i, c := range all {
		base := all[i/2*2]
		_, _ = fmt.Fprintf(table, "%s\t%.0f\t%.3f\t%.2f ms\t%.2f ms\t%.2f\t%.2f ms\t%.1f µs\t%d MiB\n", c.name,
			median(c.rates), median(c.rates)/median(base.rates), median(c.p50), median(c.p99), median(c.p99)/median(base.p99),
			median(c.p999), median(c.costs), residentMemory(b, c.pid)>>20)
	}
	_ = table.Flush()
	fmt.Println("\n" + out.String()) // the log of a benchmark is truncated
}

// BenchmarkRotating loads a token server with 100,000 cached credentials. Another process
// renews them continuously, and each renewal invalidates a cached record.
func BenchmarkRotating(b *testing.B) {
	const credentials = 100_000
	v := newFixture(b, credentials, "--appendfsync", "no")
	p, base, _ := v.tokenServer()
	c := &subject{name: "no renewals", base: base, pid: p.command.Process.Pid, paths: v.paths}
	c.load(b) // fills the cache
	for len(c.rates) == 1 || c.rates[len(c.rates)-1]*float64(*benchSeconds) < credentials {
		c.load(b)
		if len(c.rates) > 5 {
			break
		}
	}
	*c = subject{name: c.name, base: c.base, pid: c.pid, paths: c.paths}
	all := []*subject{c}
	for b.Loop() {
		for range *benchRounds {
			c.load(b)
		}
		for _, rate := range []int{300, 1000} {
			busy := &subject{name: fmt.Sprint(rate, " renewals/s"), base: base, pid: c.pid, paths: c.paths}
			stop := v.rotate(rate)
			for range *benchRounds {
				busy.load(b)
			}
			b.Logf("%d renewals a second requested, %.0f made", rate, stop())
			all = append(all, c, busy)
		}
	}
	report(b, all[1:])
}

// rotate gives random grants new tokens, rate times a second. The returned function stops
// it and returns the rate achieved.
func (v *fixture) rotate(rate int) (stop func() float64) {
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

// BenchmarkPush measures the time from a change in one process to its notification in
// another.
func BenchmarkPush(b *testing.B) {
	const changes = 2000
	v := newFixture(b, 100)
	listener := &listener{synced: make(chan struct{}), changed: make(chan grant.ID, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { v.newStore().Subscribe(ctx, listener) })
	defer running.Wait()
	defer cancel()
	<-listener.synced
	var took []float64
	for b.Loop() {
		for i := range changes {
			path := v.paths[i%len(v.paths)]
			address, _ := callback.ParsePath(path)
			began := time.Now()
			v.renew(path, "x")
			for id := range listener.changed {
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

// listener is a [store.ChangeListener] that sends what it is notified of to channels.
type listener struct {
	synced  chan struct{}
	changed chan grant.ID
}

func (l *listener) Synced()                { close(l.synced) }
func (l *listener) Invalidate(id grant.ID) { l.changed <- id }
func (l *listener) Desynced(error)         {}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// load sends requests with wrk, as many as the server can process, and records the
// measurements.
func (c *subject) load(b *testing.B) {
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
	cpu := cpuTime(b, c.pid)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "wrk", "-t1", "-c32", fmt.Sprint("-d", *benchSeconds, "s"), "--latency", "-s", script, c.base).Output()
	if err != nil {
		b.Fatalf("wrk: %v (on Debian: apt-get install wrk)", err)
	}
	cpu = cpuTime(b, c.pid) - cpu
	_, result, ok := strings.Cut(string(output), "result ")
	var rate, p50, p99, p999 float64
	var requests, errs int
	if n, err := fmt.Sscan(result, &rate, &p50, &p99, &p999, &requests, &errs); !ok || n != 6 {
		b.Fatalf("parsing the output of wrk: %v", err)
	}
	if errs > 0 {
		b.Fatalf("%s: %d of %d requests failed", c.name, errs, requests)
	}
	c.rates, c.p50, c.p99, c.p999 = append(c.rates, rate), append(c.p50, p50), append(c.p99, p99), append(c.p999, p999)
	c.costs = append(c.costs, float64(cpu.Microseconds())/float64(requests))
}

// residentMemory returns the resident memory of a process in bytes (proc(5), statm).
func residentMemory(b *testing.B, pid int) int {
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
