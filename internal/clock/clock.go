// Package clock finds out whether this machine's clock is wrong. A process with a
// wrong clock takes tokens for good that are not, and tells the others that its own
// are good for too long; so it has to stand aside.
//
// Two others are asked: Redis, and Zoom. If they agree, and this machine does not
// agree with them, it is this machine. If only Redis is off, it is Redis, and
// everybody goes on.
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

// Tolerance is how far two clocks may be apart. Recall's signatures are good for 5
// minutes, and tokens are renewed 5 minutes before they end, mostly.
const Tolerance = 30 * time.Second

// Of asks a web server for its time, by the Date of its answer (RFC 9110, section
// 6.6.1), whatever the answer is. A Date has whole seconds: the middle of it is
// returned.
func ServerTime(ctx context.Context, client *http.Client, base *url.URL) (time.Time, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, base.JoinPath("/").String(), nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking for the time: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking for the time: %w", err)
	}
	_ = response.Body.Close()
	now, ok := HeaderTime(response.Header)
	if !ok {
		return time.Time{}, errors.New("asking for the time: the answer has no Date")
	}
	return now, nil
}

// In reads the time from an answer's headers, if they have it; see [Of].
func HeaderTime(header http.Header) (now time.Time, ok bool) {
	date, err := http.ParseTime(header.Get("Date"))
	return date.Add(500 * time.Millisecond), err == nil
}

// Monitor compares clocks while it runs. It is safe for concurrent use.
type Monitor struct {
	Redis, Zoom func(context.Context) (time.Time, error) // what they say the time is
	Log         *zap.Logger

	wrong atomic.Pointer[wrongError]
}

type wrongError struct{ ahead time.Duration }

func (e *wrongError) Error() string {
	word := "ahead of"
	if e.ahead < 0 {
		word = "behind"
	}
	return fmt.Sprintf("this machine's clock is %v %s Redis's and Zoom's", e.ahead.Abs().Round(time.Second), word)
}

// CheckSkew returns what is wrong with this machine's clock, and nil if nothing is
// known to be.
func (w *Monitor) CheckSkew() error {
	if wrong := w.wrong.Load(); wrong != nil {
		return wrong
	}
	return nil
}

const every = 10 * time.Second

// Run compares the clocks now and then, until ctx ends.
func (w *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look compares once. Who cannot be asked changes nothing.
func (w *Monitor) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, every/2)
	defer cancel()
	redis, err := aheadOf(ctx, w.Redis)
	if err != nil {
		return
	}
	var found *wrongError
	if redis.Abs() > Tolerance {
		zoom, err := aheadOf(ctx, w.Zoom)
		if err != nil {
			return
		}
		if zoom.Abs() > Tolerance && (zoom-redis).Abs() <= Tolerance {
			found = &wrongError{redis}
		}
	}
	switch before := w.wrong.Swap(found); {
	case found != nil && before == nil:
		w.Log.Error("standing aside: no token is renewed here, and no request wanted", zap.Error(found))
	case found == nil && before != nil:
		w.Log.Info("the clock is right again: going on")
	}
}

// aheadOf is by how much our clock is ahead of another.
func aheadOf(ctx context.Context, other func(context.Context) (time.Time, error)) (time.Duration, error) {
	began := time.Now()
	theirs, err := other(ctx)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	// Wall clocks: what is monotonic does not know that the clock was set.
	return began.Round(0).Add(took / 2).Sub(theirs), nil
}
