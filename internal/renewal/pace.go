package renewal

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"tokenprovider/internal/zoom"
)

const (
	initialWindow      = 10               // calls at once before Zoom has accepted more
	idleReset          = time.Second      // time without a call after which the window is small again
	faultsBeforePause  = 3                // consecutive faults that pause an app
	longestPause       = 5 * time.Second  // between probes of an app that fails
	invalidClientPause = 15 * time.Second // between probes of an app whose client id or secret Zoom refuses
)

// pace limits the renewals of one Zoom app in this process. It works as TCP does: the
// window of calls in flight grows with each success, is halved by each fault, and is
// small again after an idle time. Consecutive faults pause the app; after a pause, one
// call probes it.
type pace struct {
	limiter *rate.Limiter

	mu       sync.Mutex
	max      int // upper limit of the window
	queued   int // scheduled renewals that are started and have not claimed
	inFlight int
	window   float64
	lastEnd  time.Time // of a call
	faults   int       // consecutive
	pauses   int       // consecutive
	until    time.Time // paused until then
}

func newPace(maxInFlight, perSecond int) *pace {
	return &pace{max: maxInFlight, window: initialWindow, limiter: rate.NewLimiter(rate.Limit(perSecond), burst(perSecond))}
}

func burst(perSecond int) int { return max(1, perSecond/4) }

// setLimits changes the limits from now on.
func (p *pace) setLimits(now time.Time, maxInFlight, perSecond int) {
	p.limiter.SetLimitAt(now, rate.Limit(perSecond))
	p.limiter.SetBurstAt(now, burst(perSecond))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.max = maxInFlight
}

// enqueue counts a scheduled renewal until [pace.dequeue].
func (p *pace) enqueue() { p.addQueued(1) }

func (p *pace) dequeue() { p.addQueued(-1) }

func (p *pace) addQueued(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queued += n
}

// capacity returns how many more scheduled renewals may be started.
func (p *pace) capacity(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.until) {
		return 0
	}
	if p.inFlight == 0 && now.Sub(p.lastEnd) > idleReset {
		p.window = min(p.window, initialWindow)
	}
	return max(0, min(int(p.window), p.max)-p.inFlight-p.queued)
}

// pauseRemaining returns the time for which no call may start.
func (p *pace) pauseRemaining(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.until.Sub(now))
}

// start starts a call and returns 0, or returns the wait. A call for which a caller waits
// is not limited by the window and the rate.
func (p *pace) start(now time.Time, scheduled bool) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const crowded = 50 * time.Millisecond
	switch {
	case now.Before(p.until):
		return p.until.Sub(now)
	case p.pauses > 0 && p.inFlight > 0: // a probe is in flight
		return crowded
	case scheduled && p.inFlight >= min(int(p.window), p.max):
		return crowded
	case scheduled && !p.limiter.AllowN(now, 1):
		return crowded
	}
	p.inFlight++
	return 0
}

// end ends a call. It returns the duration of the pause that its result causes, or 0.
func (p *pace) end(now time.Time, fault bool, retryAfter time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	busy := float64(p.inFlight) >= p.window/2
	p.inFlight--
	p.lastEnd = now
	if !fault {
		p.faults, p.pauses = 0, 0
		if busy {
			p.window = min(p.window+1, float64(p.max))
		}
		return 0
	}
	p.faults++
	p.window = max(1, p.window/2)
	if now.Before(p.until) || retryAfter == 0 && p.pauses == 0 && p.faults < faultsBeforePause {
		return 0
	}
	pause := max(retryAfter, min(time.Second<<min(p.pauses, 10), longestPause))
	p.pauses++
	p.until = now.Add(pause)
	return pause
}

// pauseUntil adopts another replica's pause.
func (p *pace) pauseUntil(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(p.until) {
		p.until = until
		p.window = 1
		p.pauses = max(p.pauses, 1)
	}
}

// recordResult records the result of a call in the app's pace. If that pauses the app,
// the pause is published to the other replicas.
func (r *Renewer) recordResult(app string, p *pace, err error) {
	_, retryAfter := classify(err)
	pause := p.end(time.Now(), isAppFault(err), retryAfter)
	if pause == 0 {
		return
	}
	r.metrics.paused(app, err, retryAfter)
	log := r.Log.With(zap.String("app", app), zap.Duration("for", pause), zap.Error(err))
	if errors.Is(err, zoom.ErrInvalidClient) {
		log.Error("Zoom app paused: client id or secret refused; no token of the app is renewed")
	} else {
		log.Warn("Zoom app paused; no token of the app is renewed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.Store.Pause(ctx, app, pause, err.Error()); err != nil {
		log.Warn("pause not published to the other replicas", zap.NamedError("store_error", err))
	}
}

// adoptPauses applies the pauses that other replicas have published.
func (r *Renewer) adoptPauses(ctx context.Context) {
	for app, p := range r.paces() {
		remaining, err := r.Store.PauseRemaining(ctx, app)
		if err == nil && remaining > 0 {
			p.pauseUntil(time.Now().Add(remaining))
		}
	}
}
