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

// other is somebody else's clock.
type other struct {
	mu     sync.Mutex
	behind time.Duration // than ours
	err    error
}

func (o *other) set(behind time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.behind, o.err = behind, err
}

func (o *other) now(context.Context) (time.Time, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Add(-o.behind), o.err
}

func TestWatch(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, c := range map[string]struct {
		redis, zoom       time.Duration // by which we are ahead of them
		redisErr, zoomErr error
		want              string
	}{
		"all agree":                       {0, 0, nil, nil, ""},
		"a little apart":                  {29 * time.Second, 29 * time.Second, nil, nil, ""},
		"ahead":                           {10 * time.Minute, 10 * time.Minute, nil, nil, "10m0s ahead of Redis's and Zoom's"},
		"behind, and they a little apart": {-10 * time.Minute, -10*time.Minute - 20*time.Second, nil, nil, "10m0s behind Redis's and Zoom's"},
		"Redis is wrong":                  {10 * time.Minute, 0, nil, nil, ""},
		"Zoom is wrong":                   {0, 10 * time.Minute, nil, nil, ""},
		"all are wrong":                   {10 * time.Minute, -10 * time.Minute, nil, nil, ""},
		"Redis cannot be asked":           {10 * time.Minute, 10 * time.Minute, away, nil, ""},
		"Zoom cannot be asked":            {10 * time.Minute, 10 * time.Minute, nil, away, ""},
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

// TestWatchGoesOn: a verdict stays while nobody can be asked, ends with the fault,
// and is told once.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, redis, zoom, logs := start(t)
		redis.set(time.Hour, nil)
		zoom.set(time.Hour, nil)
		time.Sleep(time.Minute)
		redis.set(0, errors.New("away"))
		time.Sleep(time.Minute)
		if w.CheckSkew() == nil {
			t.Error("the clock is taken for right though nobody can be asked")
		}
		redis.set(0, nil)
		time.Sleep(11 * time.Second)
		if err := w.CheckSkew(); err != nil {
			t.Errorf("after the clock was set: %v", err)
		}
		if all := logs.All(); len(all) != 2 || all[0].Level != zap.ErrorLevel || all[1].Level != zap.InfoLevel {
			t.Errorf("told: %v", all)
		}
	})
}

func TestOf(t *testing.T) {
	t.Parallel()
	date := "Wed, 25 Nov 2026 01:00:00 GMT"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			t.Errorf("asked by %s", r.Method)
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
		t.Error("a Date that is none is taken")
	}
	server.Close()
	if _, err := clock.ServerTime(t.Context(), server.Client(), base); err == nil {
		t.Error("nobody answers, and there is a time")
	}
}
