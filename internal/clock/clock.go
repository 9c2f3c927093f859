// Package clock detects that this machine's clock is wrong. Such a process takes
// expired tokens for valid ones, and plans renewals too late, so it must suspend
// renewals.
//
// It compares the local clock with Redis's and Zoom's. The local clock is wrong if
// both differ from it and agree with each other. If only Redis differs, Redis is
// wrong, and renewals continue.
package clock

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Tolerance is the greatest accepted difference between two clocks. It is well
// below the 5 minutes for which Recall's signatures are valid and by which tokens
// are renewed before they expire, by default.
const Tolerance = 30 * time.Second

// ServerTime returns the time at a web server, from the Date header of a response
// with any status (RFC 9110, section 6.6.1). A Date has a resolution of one second;
// the result is the middle of that second.
func ServerTime(ctx context.Context, client *http.Client, base *url.URL) (time.Time, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, base.JoinPath("/").String(), nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the server's time: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the server's time: %w", err)
	}
	_ = response.Body.Close()
	now, ok := HeaderTime(response.Header)
	if !ok {
		return time.Time{}, errors.New("reading the server's time: the response has no valid Date")
	}
	return now, nil
}

// HeaderTime returns the time in a response's Date header, and whether there is
// one; see [ServerTime].
func HeaderTime(header http.Header) (now time.Time, ok bool) {
	date, err := http.ParseTime(header.Get("Date"))
	return date.Add(500 * time.Millisecond), err == nil
}

// Monitor compares clocks while [Monitor.Run] runs. It is safe for concurrent use.
type Monitor struct {
	Redis, Zoom func(context.Context) (time.Time, error) // return the time there
	Log         *zap.Logger

	skew atomic.Pointer[skewError]
}

// skewError states by how much the local clock is wrong.
type skewError struct{ ahead time.Duration }

func (e *skewError) Error() string {
	direction := "ahead of"
	if e.ahead < 0 {
		direction = "behind"
	}
	return fmt.Sprintf("the local clock is %v %s Redis's and Zoom's", e.ahead.Abs().Round(time.Second), direction)
}

// CheckSkew returns an error if the local clock was wrong at the last comparison
// that succeeded.
func (m *Monitor) CheckSkew() error {
	if skew := m.skew.Load(); skew != nil {
		return skew
	}
	return nil
}

const interval = 10 * time.Second

// Run compares the clocks at intervals until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		m.compare(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// compare compares once. Without a time from Redis, or from Zoom where it is
// needed, the previous result stands.
func (m *Monitor) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, interval/2)
	defer cancel()
	redis, err := aheadOf(ctx, m.Redis)
	if err != nil {
		return
	}
	var found *skewError
	if redis.Abs() > Tolerance {
		zoom, err := aheadOf(ctx, m.Zoom)
		if err != nil {
			return
		}
		if zoom.Abs() > Tolerance && (zoom-redis).Abs() <= Tolerance {
			found = &skewError{redis}
		}
	}
	switch previous := m.skew.Swap(found); {
	case found != nil && previous == nil:
		m.Log.Error("clock skew; not ready, renewals suspended", zap.Error(found))
	case found == nil && previous != nil:
		m.Log.Info("clock skew ended; renewals resumed")
	}
}

// aheadOf returns by how much the local clock is ahead of another.
func aheadOf(ctx context.Context, other func(context.Context) (time.Time, error)) (time.Duration, error) {
	start := time.Now()
	theirs, err := other(ctx)
	if err != nil {
		return 0, err
	}
	elapsed := time.Since(start)
	// Round strips the monotonic reading, which a change of the wall clock does not affect.
	return start.Round(0).Add(elapsed / 2).Sub(theirs), nil
}
