package renewal_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
)

// TestMain runs Zoom's stand-in where the benchmark has started this binary as one.
func TestMain(m *testing.M) {
	latency, isZoom := os.LookupEnv("RENEWAL_TEST_ZOOM")
	if !isZoom {
		os.Exit(m.Run())
	}
	wait, err := time.ParseDuration(latency)
	if err != nil {
		panic(err)
	}
	z := zoomtest.New(zoomtest.Options{Latency: wait, AccessTokenLifetime: time.Second})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/grant" {
			_, refresh := z.Grant(zoomtest.DefaultClientID, r.URL.RawQuery)
			_, _ = fmt.Fprint(w, refresh)
			return
		}
		z.ServeHTTP(w, r)
	}))
	fmt.Println(server.URL)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the benchmark ends
}

// BenchmarkRefresh compares the renewer with a bare loop that posts the refresh and
// writes one Redis key: with the same Zoom and concurrency, in turn, in the same run.
func BenchmarkRefresh(b *testing.B) {
	for _, latency := range []time.Duration{0, 200 * time.Millisecond} {
		b.Run(fmt.Sprint("Zoom responds in ", latency), func(b *testing.B) { benchRefresh(b, latency) })
	}
}

const (
	benchInFlight = 192
	benchGrants   = 2000
	benchRounds   = 5
)

func benchRefresh(b *testing.B, latency time.Duration) {
	base := startZoom(b, latency)
	keyset := testkit.Keyset(b)
	client := testkit.StartRedis(b, "--appendfsync", "everysec").Client()
	grants := store.New(client, keyset)
	kept, err := journal.Open(b.TempDir(), keyset, 0)
	if err != nil {
		b.Fatal(err)
	}
	app := zoom.New(zoom.Config{
		ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(zoomtest.DefaultClientSecret), OAuthURL: base, APIURL: base,
		HTTP: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchInFlight}},
	})
	renewer := renewal.New(renewal.Config{
		Store: grants, Journal: kept, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		Apps: map[string]renewal.App{"default": {Zoom: app}}, MaxInFlight: benchInFlight, MaxPerSecond: 1 << 20,
		RefreshBefore: time.Hour, PauseAfterFailover: time.Nanosecond, // tokens live for a second and are due after a tenth of it
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { renewer.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := renewer.Close(end); err != nil {
			b.Error(err)
		}
		_ = kept.Close()
	}()

	ids := make([]grant.ID, benchGrants)
	bare := make([]secret.Text, benchGrants)
	for i := range ids {
		user := fmt.Sprint("user-", i)
		ids[i], bare[i] = grant.NewID("default", user), newGrant(b, base, user+"-bare")
		now := time.Now()
		if _, err := grants.AcceptConsent(ctx, ids[i], grant.Consent{
			App: "default", User: user,
			Tokens: grant.Tokens{Access: secret.New("none"), Refresh: newGrant(b, base, user), Issued: now.Add(-time.Hour), Expires: now},
		}, now.Add(-time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	// As the refresher does: start as many as the capacity allows.
	engine := func(turn <-chan int, done func(error)) {
		for i := range turn {
			for renewer.Capacity("default") == 0 || !renewer.RenewDue("default", ids[i], done) {
				time.Sleep(time.Millisecond)
			}
		}
	}
	renew := func(i int) error {
		tokens, err := app.Refresh(ctx, bare[i])
		if err != nil {
			return err
		}
		bare[i] = tokens.Refresh
		return client.Set(ctx, "bare:"+string(ids[i]), tokens.Refresh.Reveal()+tokens.Access.Reveal(), 0).Err()
	}
	loop := func(turn <-chan int, done func(error)) {
		var wg sync.WaitGroup
		for range benchInFlight {
			wg.Go(func() {
				for i := range turn {
					done(renew(i))
				}
			})
		}
		wg.Wait()
	}
	var rates, bareRates, costs, bareCosts []float64
	for b.Loop() {
		rates, costs, bareRates, bareCosts = nil, nil, nil, nil
		for range benchRounds {
			rate, cost := measure(b, engine)
			rates, costs = append(rates, rate), append(costs, cost)
			rate, cost = measure(b, loop)
			bareRates, bareCosts = append(bareRates, rate), append(bareCosts, cost)
		}
	}
	b.ReportMetric(median(rates), "refreshes/s")
	b.ReportMetric(median(bareRates), "bare-refreshes/s")
	b.ReportMetric(median(rates)/median(bareRates), "of-the-bare-loop")
	b.ReportMetric(median(costs), "µs-cpu/refresh")
	b.ReportMetric(median(bareCosts), "µs-cpu/bare-refresh")
}

// measure refreshes grant after grant for some seconds. After a warm-up it returns the
// refreshes per second, and the CPU time of each in this process, in microseconds.
func measure(b *testing.B, refresh func(turn <-chan int, done func(error))) (rate, cost float64) {
	b.Helper()
	const warmUp, measured = 2 * time.Second, 4 * time.Second
	var done atomic.Int64
	turn := make(chan int)
	var wg sync.WaitGroup
	wg.Go(func() {
		refresh(turn, func(err error) {
			if err != nil {
				b.Error(err)
			}
			done.Add(1)
		})
	})
	start := time.Now()
	var from time.Time
	var before time.Duration
	var count int64
	for n := 0; time.Since(start) < warmUp+measured; n++ {
		if from.IsZero() && time.Since(start) > warmUp {
			from, before, count = time.Now(), cpuTime(b), done.Load()
		}
		turn <- n % benchGrants
	}
	count = done.Load() - count
	rate = float64(count) / time.Since(from).Seconds()
	cost = float64((cpuTime(b) - before).Microseconds()) / float64(count)
	close(turn)
	wg.Wait()
	time.Sleep(time.Second) // for what is still in flight
	return rate, cost
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func startZoom(b *testing.B, latency time.Duration) *url.URL {
	b.Helper()
	command := exec.Command(os.Args[0], "-test.run=^$")
	command.Env = append(os.Environ(), "RENEWAL_TEST_ZOOM="+latency.String())
	stdin, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	base, err := url.Parse(lines.Text())
	if err != nil {
		b.Fatal(err)
	}
	return base
}

func newGrant(b *testing.B, base *url.URL, user string) secret.Text {
	b.Helper()
	response, err := http.Get(base.JoinPath("grant").String() + "?" + user)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	line := bufio.NewScanner(response.Body)
	line.Scan()
	return secret.New(line.Text())
}
