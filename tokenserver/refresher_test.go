package tokenserver_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/grant"
	"tokenprovider/tokenserver"
)

// plan is a due index and a renewer, on virtual time.
type plan struct {
	mu       sync.Mutex
	due      map[grant.ID]time.Time
	apps     map[grant.ID]string // default: "app"
	names    []string
	paused   map[string]bool
	failing  map[string]bool // renewals of these apps leave their grants due
	renewed  map[grant.ID]time.Time
	inFlight map[grant.ID]bool
	most     int // renewals in flight at once
	reads    int
	looks    int // calls of Capacity
	space    int // renewals of an app at once
	order    []grant.ID
	takes    time.Duration // one renewal
	err      error
	finished sync.WaitGroup
}

func (p *plan) ListDue(_ context.Context, app string, shard, limit int) (late []grant.DueGrant, next time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	if p.err != nil {
		return nil, 0, p.err
	}
	next = -1
	for id, at := range p.due {
		switch wait := time.Until(at); {
		case id.Shard() != shard, p.app(id) != app:
		case wait <= 0:
			late = append(late, grant.DueGrant{ID: id, Overdue: -wait})
		case next < 0 || wait < next:
			next = wait
		}
	}
	slices.SortFunc(late, func(a, b grant.DueGrant) int { return p.due[a.ID].Compare(p.due[b.ID]) })
	return late[:min(limit, len(late))], next, nil
}

func (p *plan) app(id grant.ID) string {
	if app := p.apps[id]; app != "" {
		return app
	}
	return "app"
}

func (p *plan) AppNames() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.names)
}

func (p *plan) Capacity(app string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if p.paused[app] {
		return 0
	}
	n := p.space
	for id := range p.inFlight {
		if p.app(id) == app {
			n--
		}
	}
	return n
}

func (p *plan) RenewDue(app string, id grant.ID, done func(error)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight[id] || p.app(id) != app {
		return false
	}
	p.inFlight[id] = true
	p.order = append(p.order, id)
	p.most = max(p.most, len(p.inFlight))
	p.finished.Go(func() {
		time.Sleep(p.takes)
		p.mu.Lock()
		delete(p.inFlight, id)
		if !p.failing[app] {
			delete(p.due, id)
			p.renewed[id] = time.Now()
		}
		p.mu.Unlock()
		done(nil)
	})
	return true
}

func newPlan() *plan {
	return &plan{space: 256, names: []string{"app"}, apps: map[grant.ID]string{}, paused: map[string]bool{}, failing: map[string]bool{}, due: map[grant.ID]time.Time{}, renewed: map[grant.ID]time.Time{}, inFlight: map[grant.ID]bool{}}
}

// run runs a refresher on the plan for d.
func (p *plan) run(t *testing.T, r *tokenserver.Refresher, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		r.Run(ctx)
		close(ended)
	}()
	time.Sleep(d)
	cancel()
	<-ended
	p.finished.Wait()
}

func TestRefresherRenewsDueGrantsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.takes = 200 * time.Millisecond
		want := map[grant.ID]time.Time{}
		for i := range 300 {
			id := grant.NewID("app", fmt.Sprint(i))
			p.due[id] = time.Now().Add(time.Duration(i) * time.Second)
			want[id] = p.due[id]
		}
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, 6*time.Minute)
		for id, at := range want {
			done, ok := p.renewed[id]
			if late := done.Sub(at); !ok || late < 0 || late > time.Second {
				t.Errorf("renewed: %v, %v after its time", ok, late)
			}
		}
	})
}

// TestRefresherRenewsGrantsThatAreDueAtOnce: the shortest waits have no room for
// jitter.
func TestRefresherRenewsGrantsThatAreDueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		for i := range 100 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now().Add(time.Duration(i))
		}
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, time.Second)
		if len(p.renewed) != 100 {
			t.Errorf("%d renewed, want 100", len(p.renewed))
		}
	})
}

// TestRefresherPollsAtTheConfiguredInterval: a grant that another process has made due
// is found within the interval.
func TestRefresherPollsAtTheConfiguredInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		id := grant.NewID("app", "ann")
		added := time.Now().Add(time.Minute)
		time.AfterFunc(time.Minute, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.due[id] = added
		})
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop(), Poll: 5 * time.Second}, 2*time.Minute)
		if late := p.renewed[id].Sub(added); late < 0 || late > 5*time.Second {
			t.Errorf("renewed %v after it became due, want within 5s", late)
		}
		// Each shard every 5 s, less up to a tenth.
		if p.reads > 24*grant.Shards*12/10 {
			t.Errorf("%d reads in two minutes", p.reads)
		}
	})
}

func TestRefresherBoundsRenewalsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.takes, p.space = time.Second, 10
		for i := range 100 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now()
		}
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, 15*time.Second)
		if p.most != 10 || len(p.renewed) != 100 {
			t.Errorf("%d renewed, at most %d at once; want 100 and 10", len(p.renewed), p.most)
		}
	})
}

func TestRefresherStartsWithTheLongestOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.takes, p.space = 100*time.Millisecond, 1
		for i := range 300 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now().Add(-time.Duration(i) * time.Minute)
		}
		due := maps.Clone(p.due)
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, time.Minute)
		if len(p.order) != 300 || !slices.IsSortedFunc(p.order, func(a, b grant.ID) int { return due[a].Compare(due[b]) }) {
			t.Errorf("%d renewals, in order: %v", len(p.order), slices.IsSortedFunc(p.order, func(a, b grant.ID) int { return due[a].Compare(due[b]) }))
		}
	})
}

func TestRefresherWithoutCapacityReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.space = 0
		p.due[grant.NewID("app", "ann")] = time.Now()
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, time.Minute)
		if p.reads != 0 {
			t.Errorf("%d reads while no renewal may start", p.reads)
		}
	})
}

func TestRefresherReadsRarelyWhenNothingIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		for i := range 1000 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now().Add(time.Hour)
		}
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, 10*time.Minute)
		if perSecond := float64(p.reads) / 600; perSecond > 6 {
			t.Errorf("%.1f reads a second with nothing due, want at most 6", perSecond)
		}
		if perSecond := float64(p.looks) / 600; perSecond > 20 {
			t.Errorf("the queue wakes up %.1f times a second with nothing due, want at most 20", perSecond)
		}
	})
}

func TestRefresherResumesAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		id := grant.NewID("app", "ann")
		p.due[id] = time.Now()
		p.err = errors.New("Redis is down")
		core, logs := observer.New(zap.WarnLevel) // one warning for the whole outage
		r := &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.New(core), Poll: time.Second}
		time.AfterFunc(10*time.Second, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.err = nil
		})
		p.run(t, r, 20*time.Second)
		if _, ok := p.renewed[id]; !ok {
			t.Error("not renewed after the outage")
		}
		if logs.Len() != 1 || p.reads > 12+11*grant.Shards {
			t.Errorf("%d warnings, %d reads", logs.Len(), p.reads)
		}
	})
}

// TestAppsAreIndependent: an app that is paused, or has a backlog that fails, does not
// delay the renewals of another.
func TestAppsAreIndependent(t *testing.T) {
	for name, disturb := range map[string]func(*plan){
		"paused":          func(p *plan) { p.paused["other"] = true },
		"failing backlog": func(p *plan) { p.failing["other"] = true },
		"slow backlog":    func(p *plan) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlan()
				p.takes, p.space, p.names = 200*time.Millisecond, 4, []string{"other", "app"}
				for i := range 3000 { // all overdue for longer than any grant of the app
					id := grant.NewID("other", fmt.Sprint(i))
					p.due[id], p.apps[id] = time.Now().Add(-time.Hour), "other"
				}
				want := map[grant.ID]time.Time{}
				for i := range 60 {
					id := grant.NewID("app", fmt.Sprint(i))
					p.due[id] = time.Now().Add(time.Duration(i) * time.Second)
					want[id] = p.due[id]
				}
				disturb(p)
				p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop()}, 62*time.Second)
				for id, at := range want {
					renewed, ok := p.renewed[id]
					if late := renewed.Sub(at); !ok || late > 1500*time.Millisecond {
						t.Errorf("renewed: %v, %v after its time", ok, late)
					}
				}
			})
		})
	}
}

func TestRefresherFollowsTheApps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.names = nil
		id := grant.NewID("app", "ann")
		p.due[id] = time.Now()
		setApps := func(names ...string) func() {
			return func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.names, p.due[id] = names, time.Now().Add(2*time.Second) // a removal takes up to 1 s
			}
		}
		time.AfterFunc(10*time.Second, setApps("app"))
		time.AfterFunc(20*time.Second, setApps())
		p.run(t, &tokenserver.Refresher{Index: p, Renewer: p, Log: zap.NewNop(), Poll: time.Second}, 40*time.Second)
		if n := len(p.order); n != 1 {
			t.Errorf("%d renewals, want 1: none before the app is added, none after it is removed", n)
		}
	})
}
