package clock_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/clock"
)

// other is the clock of another machine.
type other struct {
	mu      sync.Mutex
	behind  time.Duration // the local clock
	err     error
	latency time.Duration
	timeout time.Duration // of the last call
}

func (o *other) set(behind time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.behind, o.err = behind, err
}

func (o *other) now(ctx context.Context) (time.Time, error) {
	deadline, _ := ctx.Deadline()
	timeout := time.Until(deadline)
	time.Sleep(o.latency)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timeout = timeout
	return time.Now().Add(-o.behind), o.err
}

func TestMonitor(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	for name, c := range map[string]struct {
		redis, zoom       time.Duration // by which the local clock is ahead of them
		redisErr, zoomErr error
		want              string
	}{
		"all agree":                     {0, 0, nil, nil, ""},
		"within the tolerance":          {clock.Tolerance, clock.Tolerance, nil, nil, ""},
		"just beyond the tolerance":     {clock.Tolerance + 1, clock.Tolerance + 1, nil, nil, "30s ahead of Redis's and Zoom's"},
		"Redis within the tolerance":    {clock.Tolerance, clock.Tolerance + 1, nil, nil, ""},
		"Zoom within the tolerance":     {2 * clock.Tolerance, clock.Tolerance, nil, nil, ""},
		"ahead":                         {10 * time.Minute, 10 * time.Minute, nil, nil, "10m0s ahead of Redis's and Zoom's"},
		"behind, the others agree":      {-10 * time.Minute, -10*time.Minute - clock.Tolerance, nil, nil, "10m0s behind Redis's and Zoom's"},
		"the others just disagree":      {-10 * time.Minute, -10*time.Minute - clock.Tolerance - 1, nil, nil, ""},
		"Redis is wrong":                {10 * time.Minute, 0, nil, nil, ""},
		"Zoom is wrong":                 {0, 10 * time.Minute, nil, nil, ""},
		"all are wrong":                 {10 * time.Minute, -10 * time.Minute, nil, nil, ""},
		"Redis is unavailable":          {10 * time.Minute, 10 * time.Minute, down, nil, ""},
		"Zoom is unavailable":           {10 * time.Minute, 10 * time.Minute, nil, down, ""},
		"a little apart, both ahead":    {29 * time.Second, 29 * time.Second, nil, nil, ""},
		"behind, the others 20 s apart": {-10 * time.Minute, -10*time.Minute - 20*time.Second, nil, nil, "10m0s behind Redis's and Zoom's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, redis, zoom, _ := start(t)
				redis.set(c.redis, c.redisErr)
				zoom.set(c.zoom, c.zoomErr)
				time.Sleep(11 * time.Second)
				err := w.CheckSkew()
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%v, want %q", err, c.want)
				}
			})
		})
	}
}

func start(t *testing.T) (w *clock.Monitor, redis, zoom *other, logs *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	redis, zoom = &other{}, &other{}
	w = &clock.Monitor{Redis: redis.now, Zoom: zoom.now, Log: zap.New(core)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return w, redis, zoom, logs
}

// TestSkewLasts: a result stands while the other clocks are unavailable, ends with
// the skew, and is logged once.
func TestSkewLasts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, redis, zoom, logs := start(t)
		redis.set(time.Hour, nil)
		zoom.set(time.Hour, nil)
		time.Sleep(time.Minute)
		redis.set(0, errors.New("connection refused"))
		time.Sleep(time.Minute)
		if w.CheckSkew() == nil {
			t.Error("the skew ended without a comparison")
		}
		redis.set(0, nil)
		time.Sleep(11 * time.Second)
		if err := w.CheckSkew(); err != nil {
			t.Errorf("after the clock was set: %v", err)
		}
		if all := logs.All(); len(all) != 2 || all[0].Level != zap.ErrorLevel || all[1].Level != zap.InfoLevel {
			t.Errorf("logged: %v", all)
		}
	})
}

// TestLatency: half of a call's time counts, and a call is limited to half the
// interval.
func TestLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, _ := observer.New(zap.InfoLevel)
		slow := &other{behind: clock.Tolerance - time.Second, latency: 4 * time.Second}
		quick := &other{behind: time.Hour}
		m := &clock.Monitor{Redis: slow.now, Zoom: quick.now, Log: zap.New(core)}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { m.Run(ctx) })
		time.Sleep(9 * time.Second)
		if err := m.CheckSkew(); err != nil {
			t.Errorf("27 s ahead: %v", err)
		}
		if slow.timeout != 5*time.Second || quick.timeout != 0 {
			t.Errorf("timeouts of %v and %v, want 5s for Redis and no call to Zoom", slow.timeout, quick.timeout)
		}
		cancel()
		running.Wait()
	})
}

func TestServerTime(t *testing.T) {
	t.Parallel()
	date := "Wed, 25 Nov 2026 01:00:00 GMT"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			t.Errorf("method %s, want HEAD", r.Method)
		}
		w.Header()["Date"] = []string{date}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	got, err := clock.ServerTime(t.Context(), server.Client(), base)
	if want := time.Date(2026, 11, 25, 1, 0, 0, 5e8, time.UTC); err != nil || !got.Equal(want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	date = "today"
	if _, err := clock.ServerTime(t.Context(), server.Client(), base); err == nil {
		t.Error("an invalid Date was accepted")
	}
	server.Close()
	if _, err := clock.ServerTime(t.Context(), server.Client(), base); err == nil {
		t.Error("a time without a response")
	}
}
