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

// plan is a due index, and the renewals made by it, on virtual time.
type plan struct {
	mu       sync.Mutex
	due      map[grant.ID]time.Time
	renewed  map[grant.ID]time.Time
	under    map[grant.ID]bool
	most     int // renewals under way at once
	looks    int
	space    int // renewals that there may be at once
	order    []grant.ID
	takes    time.Duration // one renewal
	err      error
	finished sync.WaitGroup
}

func (p *plan) ListDue(_ context.Context, app string, shard, limit int) (late []grant.DueGrant, next time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if p.err != nil {
		return nil, 0, p.err
	}
	next = -1
	for id, at := range p.due {
		switch wait := time.Until(at); {
		case id.Shard() != shard || id.AppTag() != grant.AppTag(app):
		case wait <= 0:
			late = append(late, grant.DueGrant{ID: id, Overdue: -wait})
		case next < 0 || wait < next:
			next = wait
		}
	}
	slices.SortFunc(late, func(a, b grant.DueGrant) int { return p.due[a.ID].Compare(p.due[b.ID]) })
	return late[:min(limit, len(late))], next, nil
}

func (p *plan) Capacity() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.space - len(p.under)
}

func (p *plan) RenewDue(id grant.ID, landed func(error)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.under[id] {
		return false
	}
	p.under[id] = true
	p.order = append(p.order, id)
	p.most = max(p.most, len(p.under))
	p.finished.Go(func() {
		time.Sleep(p.takes)
		p.mu.Lock()
		delete(p.under, id)
		delete(p.due, id)
		p.renewed[id] = time.Now()
		p.mu.Unlock()
		landed(nil)
	})
	return true
}

func oneApp() []string { return []string{"app"} }

func newPlan() *plan {
	return &plan{space: 256, due: map[grant.ID]time.Time{}, renewed: map[grant.ID]time.Time{}, under: map[grant.ID]bool{}}
}

// run lets a refresher work on the plan for d.
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

func TestRefresherRenewsWhatIsDueInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.takes = 200 * time.Millisecond
		want := map[grant.ID]time.Time{}
		for i := range 300 {
			id := grant.NewID("app", fmt.Sprint(i))
			p.due[id] = time.Now().Add(time.Duration(i) * time.Second)
			want[id] = p.due[id]
		}
		p.run(t, &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.NewNop()}, 6*time.Minute)
		for id, at := range want {
			done, ok := p.renewed[id]
			if late := done.Sub(at); !ok || late < 0 || late > time.Second {
				t.Errorf("renewed: %v, %v after its time", ok, late)
			}
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
		p.run(t, &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.NewNop()}, 15*time.Second)
		if p.most != 10 || len(p.renewed) != 100 {
			t.Errorf("%d renewed, at most %d at once; want 100 and 10", len(p.renewed), p.most)
		}
	})
}

func TestRefresherTakesWhatIsLongestDueFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.takes, p.space = 100*time.Millisecond, 1
		for i := range 300 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now().Add(-time.Duration(i) * time.Minute)
		}
		due := maps.Clone(p.due)
		p.run(t, &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.NewNop()}, time.Minute)
		if len(p.order) != 300 || !slices.IsSortedFunc(p.order, func(a, b grant.ID) int { return due[a].Compare(due[b]) }) {
			t.Errorf("%d renewals, in order: %v", len(p.order), slices.IsSortedFunc(p.order, func(a, b grant.ID) int { return due[a].Compare(due[b]) }))
		}
	})
}

func TestRefresherWithoutRoomAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		p.space = 0
		p.due[grant.NewID("app", "ann")] = time.Now()
		p.run(t, &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.NewNop()}, time.Minute)
		if p.looks != 0 {
			t.Errorf("%d looks while no renewal may begin", p.looks)
		}
	})
}

func TestRefresherWaitsCheaply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		for i := range 1000 {
			p.due[grant.NewID("app", fmt.Sprint(i))] = time.Now().Add(time.Hour)
		}
		p.run(t, &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.NewNop()}, 10*time.Minute)
		if perSecond := float64(p.looks) / 600; perSecond > 6 {
			t.Errorf("%.1f looks a second with nothing due, want a handful", perSecond)
		}
	})
}

func TestRefresherGetsOverAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlan()
		id := grant.NewID("app", "ann")
		p.due[id] = time.Now()
		p.err = errors.New("Redis is down")
		core, logs := observer.New(zap.WarnLevel) // one warning for the whole outage
		r := &tokenserver.Refresher{Index: p, Apps: oneApp, Renewer: p, Log: zap.New(core), Poll: time.Second}
		time.AfterFunc(10*time.Second, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.err = nil
		})
		p.run(t, r, 20*time.Second)
		if _, ok := p.renewed[id]; !ok {
			t.Error("not renewed after the outage")
		}
		if logs.Len() != 1 || p.looks > 12+11*grant.Shards {
			t.Errorf("%d warnings, %d looks", logs.Len(), p.looks)
		}
	})
}
