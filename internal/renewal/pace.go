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
	firstWindow   = 10               // flights at once before Zoom has shown that it takes more
	rest          = time.Second      // without a flight, after which the window begins small again
	patience      = 3                // faults in a row before an app is paused
	longestPause  = 5 * time.Second  // between probes of an app that fails
	operatorPause = 15 * time.Second // between probes of an app that Zoom refuses
)

// pace is how fast the grants of one Zoom app are renewed by this process. It
// works as TCP does: the window of flights at once grows with each success, is
// halved by each fault, and begins small again after a rest. Faults in a row
// pause the app; after a pause a single flight probes it.
type pace struct {
	max     int
	limiter *rate.Limiter

	mu       sync.Mutex
	inFlight int
	window   float64
	landed   time.Time // when the last flight ended
	faults   int       // in a row
	trips    int       // pauses in a row
	until    time.Time // paused until then
}

func newPace(maxInFlight, perSecond int) *pace {
	return &pace{max: maxInFlight, window: firstWindow, limiter: rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/4))}
}

// room returns how many more flights by plan there may be.
func (p *pace) room(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.until) {
		return 0
	}
	if p.inFlight == 0 && now.Sub(p.landed) > rest {
		p.window = min(p.window, firstWindow)
	}
	return max(0, min(int(p.window), p.max)-p.inFlight)
}

// paused returns for how long no flight may begin.
func (p *pace) paused(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.until.Sub(now))
}

// enter begins a flight, or says how long to wait. Flights that somebody waits
// for do not wait for the window.
func (p *pace) enter(now time.Time, planned bool) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const crowded = 50 * time.Millisecond
	switch {
	case now.Before(p.until):
		return p.until.Sub(now)
	case p.trips > 0 && p.inFlight > 0: // somebody is probing
		return crowded
	case planned && p.inFlight >= min(int(p.window), p.max):
		return crowded
	case planned && !p.limiter.AllowN(now, 1):
		return crowded
	}
	p.inFlight++
	return 0
}

// leave ends a flight. It returns how long the app is paused by this, 0 if it
// is not.
func (p *pace) leave(now time.Time, fault bool, asked time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	busy := float64(p.inFlight) >= p.window/2
	p.inFlight--
	p.landed = now
	if !fault {
		p.faults, p.trips = 0, 0
		if busy {
			p.window = min(p.window+1, float64(p.max))
		}
		return 0
	}
	p.faults++
	p.window = max(1, p.window/2)
	if now.Before(p.until) || asked == 0 && p.trips == 0 && p.faults < patience {
		return 0
	}
	pause := max(asked, min(time.Second<<min(p.trips, 10), longestPause))
	p.trips++
	p.until = now.Add(pause)
	return pause
}

// pause is another replica's pause, taken over.
func (p *pace) pause(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(p.until) {
		p.until = until
		p.window = 1
		p.trips = max(p.trips, 1)
	}
}

// landed tells the pace how a call has ended, and the other replicas if the app
// is to be left alone.
func (r *Renewer) landed(app string, p *pace, err error) {
	_, asked := judge(err)
	pause := p.leave(time.Now(), appFault(err), asked)
	if pause == 0 {
		return
	}
	r.metrics.paused(app, err, asked)
	log := r.Log.With(zap.String("app", app), zap.Duration("for", pause), zap.Error(err))
	if errors.Is(err, zoom.ErrInvalidClient) {
		log.Error("paused the Zoom app: Zoom refuses its client id or secret; no user can be refreshed until the operator mends that")
	} else {
		log.Warn("paused the Zoom app")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.Store.Pause(ctx, app, pause, err.Error()); err != nil {
		log.Warn("the other replicas could not be told of the pause", zap.NamedError("store_error", err))
	}
}

// takePauses takes over the pauses of other replicas.
func (r *Renewer) takePauses(ctx context.Context) {
	for app, p := range r.paces() {
		left, err := r.Store.Paused(ctx, app)
		if err == nil && left > 0 {
			p.pause(time.Now().Add(left))
		}
	}
}

// grounded returns for how long no flight may begin, whatever it is for.
func (r *Renewer) grounded() time.Duration {
	if hold := r.holding(); hold > 0 {
		return hold
	}
	now := time.Now()
	var shortest time.Duration
	for _, p := range r.paces() {
		left := p.paused(now)
		if left == 0 {
			return 0
		}
		if shortest == 0 || left < shortest {
			shortest = left
		}
	}
	return shortest
}
