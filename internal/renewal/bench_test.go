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

// TestMain is Zoom, a process of its own, where the benchmark asks for one.
func TestMain(m *testing.M) {
	latency, asked := os.LookupEnv("ROTATION_TEST_ZOOM")
	if !asked {
		os.Exit(m.Run())
	}
	wait, err := time.ParseDuration(latency)
	if err != nil {
		panic(err)
	}
	z := zoomtest.New(zoomtest.Options{Latency: wait, AccessTokenLife: time.Second})
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

// BenchmarkRefresh compares the engine, with everything that it does to lose
// nothing, with a bare loop that posts the refresh and writes one Redis key: the
// same Zoom, the same concurrency, in turn, in the same run.
func BenchmarkRefresh(b *testing.B) {
	for _, latency := range []time.Duration{0, 200 * time.Millisecond} {
		b.Run(fmt.Sprint("Zoom answers in ", latency), func(b *testing.B) { benchRefresh(b, latency) })
	}
}

const (
	benchFlights = 192
	benchGrants  = 2000
	benchRounds  = 5
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
		HTTP: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchFlights}},
	})
	rotator := renewal.New(renewal.Config{
		Store: grants, Journal: kept, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		Apps: map[string]renewal.Zoom{"default": app}, MaxInFlight: benchFlights, MaxPerSecond: 1 << 20,
		RefreshBefore: time.Hour, PauseAfterFailover: time.Nanosecond, // tokens live for a second and are due after a tenth of it
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { rotator.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := rotator.Close(end); err != nil {
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
	// As the refresher does: start what there is room for.
	engine := func(turn <-chan int, done func(error)) {
		for i := range turn {
			for rotator.Capacity() == 0 || !rotator.RenewDue(ids[i], done) {
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
		for range benchFlights {
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

// measure refreshes grant after grant for some seconds, and returns how many a
// second that was once it was in its stride, and the microseconds of processor
// that each took in this process.
func measure(b *testing.B, refresh func(turn <-chan int, done func(error))) (rate, cost float64) {
	b.Helper()
	const stride, watch = 2 * time.Second, 4 * time.Second
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
	begun := time.Now()
	var from time.Time
	var before time.Duration
	var count int64
	for n := 0; time.Since(begun) < stride+watch; n++ {
		if from.IsZero() && time.Since(begun) > stride {
			from, before, count = time.Now(), processor(b), done.Load()
		}
		turn <- n % benchGrants
	}
	count = done.Load() - count
	rate = float64(count) / time.Since(from).Seconds()
	cost = float64((processor(b) - before).Microseconds()) / float64(count)
	close(turn)
	wg.Wait()
	time.Sleep(time.Second) // for what is still in flight
	return rate, cost
}

func processor(b *testing.B) time.Duration {
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
	command.Env = append(os.Environ(), "ROTATION_TEST_ZOOM="+latency.String())
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
