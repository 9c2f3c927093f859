package renewal_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// The protocol as a model: random schedules of replicas on virtual time, with crashes
// at every step, pauses longer than the lease, lost requests and responses, and Redis
// down or rolled back. Zoom is the oracle.

var (
	schedules = flag.Int("schedules", 2000, "number of random schedules of the renewal protocol")
	firstSeed = flag.Uint64("seed", 1, "seed of the first schedule")
)

const (
	tokenLife = 200 * time.Second
	turmoil   = 60 * time.Second  // of faults
	calm      = 150 * time.Second // for recovery
)

// schedule is the parameters of one run.
type schedule struct {
	replicas, grants int
	lenient          bool // Zoom accepts the predecessor of the newest token
	crashes          float64
	redisFails       float64
	zoomFails        float64
	pauses           bool // of replicas, longer than lease and LateResponseWait together
	rollbacks        bool // of Redis, by up to 5 s
}

func draw(r *rand.Rand) schedule {
	maybe := func(p float64) float64 {
		if r.IntN(2) == 0 {
			return 0
		}
		return p * r.Float64()
	}
	s := schedule{
		replicas: 1 + r.IntN(4), grants: 1 + r.IntN(4), lenient: r.IntN(4) == 0,
		crashes: maybe(0.2), redisFails: maybe(0.3), zoomFails: maybe(0.5),
	}
	// If Redis loses writes while a replica is stopped for long, no replica can
	// replay them in time. The protocol does not cover that.
	if r.IntN(2) == 0 {
		s.rollbacks = true
	} else {
		s.pauses = r.IntN(2) == 0
	}
	return s
}

// world is one run.
type world struct {
	schedule
	redis     *memory
	oracle    *oracle
	journaled set // fingerprints of journaled responses

	mu     sync.Mutex
	rand   *rand.Rand
	faulty bool // faults happen
	down   bool // Redis is
	// After a rollback every replica must run to replay its journal; renewals are
	// paused for that time. No other fault happens until then. A replay that is too
	// late repairs the grant, but its token has been spent twice.
	quiet  time.Time
	trace  []string
	broken []string // violated invariants
}

func (w *world) note(format string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, fmt.Sprintf("%8.3fs ", time.Since(epoch).Seconds())+fmt.Sprintf(format, values...))
}

func (w *world) violate(format string, values ...any) {
	w.note("VIOLATION "+format, values...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, fmt.Sprintf(format, values...))
}

func (w *world) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faulty && !time.Now().Before(w.quiet) && w.rand.Float64() < p
}

func (w *world) between(low, high time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return low + time.Duration(w.rand.Int64N(int64(high-low)+1))
}

// set is a set of texts.
type set struct{ sync.Map }

func (s *set) add(text string)      { s.Store(text, true) }
func (s *set) has(text string) bool { _, ok := s.Load(text); return ok }

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when every bubble begins

// oracle is Zoom: it records which tokens it has issued, and which were presented.
type oracle struct {
	*world
	mu       sync.Mutex
	issued   int
	grants   map[grant.ID]*issuance
	presents map[string]int // by refresh token

	wire map[string]int // by refresh token

	successors map[string][]string // fingerprints, by refresh token
}

// issuance is a grant as Zoom has it.
type issuance struct {
	access, refresh string
	predecessor     string // of refresh; "" once refresh was used
	expires         time.Time
}

func (j *oracle) nextLocked(g *issuance) {
	j.issued++
	g.predecessor, g.access, g.refresh = g.refresh, fmt.Sprint("access-", j.issued), fmt.Sprint("refresh-", j.issued)
	g.expires = time.Now().Add(tokenLife)
}

// onTheWire starts a refresh, which off ends: there is one at a time.
func (j *oracle) onTheWire(refresh string) (off func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.wire[refresh]++
	if j.wire[refresh] > 1 {
		j.violate("%s is on the wire %d times", refresh, j.wire[refresh])
	}
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.wire[refresh]--
	}
}

// spend is a refresh that has reached Zoom. It returns the successor.
func (j *oracle) spend(id grant.ID, refresh string, uncertain bool) (zoom.Tokens, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.presents[refresh]++
	// A token may be presented again only if its outcome is unknown. The intent
	// records that. If Redis has lost the intent, no response may be journaled.
	journaled := slices.ContainsFunc(j.successors[refresh], j.journaled.has)
	if n := j.presents[refresh]; n > 1 && !uncertain && (journaled || !j.rollbacks) {
		j.violate("%s was presented %d times, though nothing was uncertain", refresh, n)
	}
	g := j.grants[id]
	switch {
	case g.refresh == refresh:
	case j.lenient && g.predecessor == refresh:
	default:
		return zoom.Tokens{}, zoom.ErrInvalidGrant
	}
	g.refresh = refresh
	j.nextLocked(g)
	j.successors[refresh] = append(j.successors[refresh], store.RefreshFingerprint(secret.New(g.refresh)))
	return zoom.Tokens{Access: secret.New(g.access), Refresh: secret.New(g.refresh), Lifetime: tokenLife}, nil
}

// replica is a process. Its renewer does all I/O through it, so it can die or be
// stopped between any two steps.
type replica struct {
	*world
	name    string
	journal *memoryJournal
	dead    atomic.Bool
	stopped atomic.Int64 // until when, in ns since the epoch
	cancel  context.CancelFunc
	claims  sync.Map // refresh token -> grant.Claim
	renewer *renewal.Renewer
}

// step runs between two steps of the protocol.
func (r *replica) step(name string) {
	if r.chance(r.crashes) && !r.dead.Swap(true) {
		r.note("%s dies %s", r.name, name)
		r.cancel()
	}
	if r.pauses && r.chance(0.03) {
		d := r.between(time.Second, 90*time.Second)
		r.note("%s is stopped for %v %s", r.name, d, name)
		r.stopped.Store(int64(time.Since(epoch) + d))
	}
	for {
		left := time.Duration(r.stopped.Load()) - time.Since(epoch)
		if left <= 0 {
			break
		}
		time.Sleep(left)
	}
	if r.dead.Load() {
		runtime.Goexit()
	}
}

// redisCall calls Redis. The call may fail before or after it has taken effect.
func redisCall[T any](r *replica, name string, call func() (T, error)) (T, error) {
	var none T
	r.step("before " + name)
	r.mu.Lock()
	down := r.down
	r.mu.Unlock()
	if down || r.chance(r.redisFails) {
		return none, errDown
	}
	time.Sleep(r.between(0, 2*time.Millisecond))
	reply, err := call()
	r.step("after " + name)
	if r.chance(r.redisFails / 2) {
		return none, errDown // the reply is lost
	}
	return reply, err
}

func (r *replica) Claim(ctx context.Context, id grant.ID, owner string, terms grant.ClaimTerms) (grant.Claim, error) {
	claim, err := redisCall(r, "the claim", func() (grant.Claim, error) { return r.redis.Claim(ctx, id, owner, terms) })
	if err == nil {
		r.note("%s claims %.4s: %s, uncertain: %v", r.name, id, claim.Refresh.Reveal(), claim.Uncertain)
		r.claims.Store(claim.Refresh.Reveal(), claim)
	}
	return claim, err
}

func (r *replica) Commit(ctx context.Context, id grant.ID, spent string, tokens grant.Tokens, due time.Time) (bool, error) {
	missing, err := redisCall(r, "the commit", func() (bool, error) { return r.redis.Commit(ctx, id, spent, tokens, due) })
	r.note("%s commits %s to %.4s: %v", r.name, tokens.Refresh.Reveal(), id, err)
	return missing, err
}

func (r *replica) Fail(ctx context.Context, c grant.Claim, outcome grant.Outcome, retryIn time.Duration, reason string) error {
	_, err := redisCall(r, "the failure", func() (struct{}, error) { return struct{}{}, r.redis.Fail(ctx, c, outcome, retryIn, reason) })
	r.note("%s records %s for %.4s: %v", r.name, outcome, c.ID, err)
	return err
}

func (r *replica) ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error) {
	return redisCall(r, "the read", func() (grant.ServingRecord, error) { return r.redis.ReadServingRecord(ctx, id) })
}

func (r *replica) MarkServed(ctx context.Context, id grant.ID) error {
	return r.redis.MarkServed(ctx, id)
}

func (r *replica) Pause(ctx context.Context, app string, d time.Duration, reason string) error {
	return r.redis.Pause(ctx, app, d, reason)
}

func (r *replica) PauseRemaining(ctx context.Context, app string) (time.Duration, error) {
	return r.redis.PauseRemaining(ctx, app)
}

func (r *replica) Failovers() int64 { return r.redis.Failovers() }

func (r *replica) CheckFailover(context.Context) error {
	_, err := redisCall(r, "the check", func() (struct{}, error) { return struct{}{}, nil })
	return err
}

func (r *replica) AcceptConsent(ctx context.Context, id grant.ID, c grant.Consent, due time.Time) (bool, error) {
	return r.redis.AcceptConsent(ctx, id, c, due)
}

func (r *replica) Add(ctx context.Context, e journal.Entry) error {
	r.step("before the journal")
	err := r.journal.Add(ctx, e)
	r.journaled.add(store.RefreshFingerprint(e.Tokens.Refresh))
	r.note("%s journals %s", r.name, e.Tokens.Refresh.Reveal())
	r.step("after the journal")
	return err
}

func (r *replica) MarkCommitted(id grant.ID, spent string) { r.journal.MarkCommitted(id, spent) }

func (r *replica) Entries() []journal.Entry { return r.journal.Entries() }

// Refresh calls Zoom over a network that loses requests and responses.
func (r *replica) Refresh(ctx context.Context, refresh secret.Text) (zoom.Tokens, error) {
	r.step("before the call")
	found, _ := r.claims.Load(refresh.Reveal())
	claim := found.(grant.Claim)
	if ctx.Err() != nil { // as every HTTP client does before it writes
		return zoom.Tokens{}, zoom.ErrUnsent
	}
	if r.chance(r.zoomFails / 3) {
		return zoom.Tokens{}, zoom.ErrUnsent
	}
	if r.chance(r.zoomFails / 6) {
		return zoom.Tokens{}, &zoom.RefusedError{Status: 429}
	}
	if r.chance(r.zoomFails / 3) {
		time.Sleep(r.between(0, 5*time.Second))
		r.note("the request with %s is lost", refresh.Reveal())
		return zoom.Tokens{}, zoom.ErrUncertain
	}
	off := sync.OnceFunc(r.oracle.onTheWire(refresh.Reveal()))
	defer off()
	time.Sleep(r.between(10*time.Millisecond, 500*time.Millisecond))
	tokens, err := r.oracle.spend(claim.ID, refresh.Reveal(), claim.Uncertain)
	r.note("Zoom takes %s: %s, %v", refresh.Reveal(), tokens.Refresh.Reveal(), err)
	slow := r.between(10*time.Millisecond, 500*time.Millisecond)
	if r.chance(r.zoomFails / 6) {
		slow = time.Minute
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return zoom.Tokens{}, zoom.ErrUncertain
	}
	off()
	r.step("after the call")
	if r.chance(r.zoomFails / 3) {
		r.note("the response to %s is lost", refresh.Reveal())
		return zoom.Tokens{}, zoom.ErrUncertain
	}
	return tokens, err
}

// live runs a process from its start to its end.
func (r *replica) live(ctx context.Context) {
	r.renewer = renewal.New(renewal.Config{
		Store: r, Journal: r, Apps: map[string]renewal.App{"default": {Zoom: r}}, Log: zap.NewNop(),
		Metrics: prometheus.NewRegistry(), RefreshBefore: tokenLife - 30*time.Second,
	})
	var wg sync.WaitGroup
	wg.Go(func() { r.renewer.Run(ctx) })
	wg.Go(func() { // the refresher
		for ctx.Err() == nil {
			for _, id := range r.redis.due() {
				if r.renewer.Capacity("default") > 0 {
					r.renewer.RenewDue("default", id, func(error) {})
				}
			}
			sleep(ctx, 500*time.Millisecond)
		}
	})
	wg.Go(func() { // callbacks
		for ctx.Err() == nil {
			sleep(ctx, r.between(time.Second, 20*time.Second))
			id := r.anyGrant()
			wait, cancel := context.WithTimeout(ctx, 4*time.Second)
			if serving, err := r.ReadServingRecord(wait, id); err == nil {
				_, _ = r.renewer.EnsureFresh(wait, id, serving, grant.MinTTL)
			}
			cancel()
		}
	})
	wg.Wait()
	if !r.dead.Load() {
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.renewer.Close(end); err != nil {
			r.violate("%s cannot be stopped: %v", r.name, err)
		}
	}
}

func (w *world) anyGrant() grant.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return grantID(w.rand.IntN(w.grants))
}

func grantID(n int) grant.ID { return grant.NewID("default", fmt.Sprint("user-", n)) }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// run runs one schedule and returns the violated invariants.
func run(t *testing.T, seed uint64, mutate func(*world)) (broken, trace []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		w := &world{schedule: draw(random), redis: newMemory(), rand: random, faulty: true}
		w.oracle = &oracle{world: w, grants: map[grant.ID]*issuance{}, presents: map[string]int{}, wire: map[string]int{}, successors: map[string][]string{}}
		for n := range w.grants {
			g := &issuance{}
			w.oracle.nextLocked(g)
			issued := time.Now()
			due := issued.Add(time.Duration(random.IntN(20)) * time.Second)
			w.redis.records[grantID(n)] = record{app: "default", plan: due, due: due, planned: true, linked: true, tokens: grant.Tokens{
				Access: secret.New(g.access), Refresh: secret.New(g.refresh), Issued: issued.Add(-time.Minute), Expires: g.expires,
			}}
			w.oracle.grants[grantID(n)] = g
		}
		if mutate != nil {
			mutate(w)
		}
		w.note("%+v", w.schedule)
		ctx, cancel := context.WithCancel(t.Context())
		journals := make([]*memoryJournal, w.replicas)
		var wg sync.WaitGroup
		for i := range w.replicas {
			journals[i] = newMemoryJournal()
			journals[i].loses = w.redis.pauses == nil
			wg.Go(func() { w.keepAlive(ctx, i, journals[i]) })
		}
		if w.redis.pauses == nil {
			w.redis.pauses = map[string]time.Time{}
		}
		wg.Go(func() { w.disturbRedis(ctx) })
		sleep(ctx, turmoil)
		w.mu.Lock()
		w.faulty, w.down = false, false
		w.mu.Unlock()
		w.note("calm")
		sleep(ctx, calm)
		cancel()
		wg.Wait()
		w.examine()
		time.Sleep(10 * time.Minute) // for the goroutines of dead replicas to end
		broken, trace = w.broken, w.trace
	})
	return broken, trace
}

// keepAlive restarts a replica whenever it has died.
func (w *world) keepAlive(ctx context.Context, n int, j *memoryJournal) {
	for life := 1; ctx.Err() == nil; life++ {
		alive, cancel := context.WithCancel(ctx)
		r := &replica{world: w, name: fmt.Sprintf("replica-%d.%d", n, life), journal: j, cancel: cancel}
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.live(alive)
		}()
		<-done
		cancel()
		if ctx.Err() == nil {
			sleep(ctx, w.between(100*time.Millisecond, 2*time.Second))
		}
	}
}

// disturbRedis stops Redis, and restores it with an earlier state.
func (w *world) disturbRedis(ctx context.Context) {
	old, at := w.redis.snapshot(), time.Now()
	for ctx.Err() == nil {
		sleep(ctx, 500*time.Millisecond)
		if !w.rollbacks {
			continue
		}
		if w.chance(0.03) {
			w.mu.Lock()
			w.down = true
			w.mu.Unlock()
			sleep(ctx, w.between(0, 3*time.Second))
			w.note("Redis is back as it was %v before", time.Since(at))
			w.redis.restore(old)
			w.mu.Lock()
			w.down, w.quiet = false, time.Now().Add(16*time.Second)
			w.mu.Unlock()
		}
		if time.Since(at) > 2*time.Second {
			old, at = w.redis.snapshot(), time.Now()
		}
	}
}

// examine checks the invariants at the end of a run.
func (w *world) examine() {
	for n := range w.grants {
		id := grantID(n)
		stored, issued := w.redis.records[id], w.oracle.grants[id]
		newest := store.RefreshFingerprint(secret.New(issued.refresh))
		first := issued.predecessor == ""
		switch {
		case stored.fingerprint() == newest:
			if stored.gone {
				w.violate("%.4s has the newest token and is marked gone", id)
			}
			if stored.tokens.Expires.Before(time.Now()) || stored.tokens.Access.Reveal() != issued.access {
				w.violate("%.4s is alive at Zoom and not fresh", id)
			}
		case w.journaled.has(newest) || first:
			w.violate("the response with %s was journaled and is lost", issued.refresh)
		case w.lenient && !stored.gone:
			w.violate("%.4s could have been saved by trying its old token", id)
		case !stored.gone:
			w.violate("%.4s is lost and not marked gone", id)
		}
	}
	seconds := int((turmoil + calm) / time.Second)
	if most := seconds * w.replicas * (w.grants + 2) * 4; w.redis.calls > most {
		w.violate("%d calls to Redis, more than %d: a loop", w.redis.calls, most)
	}
	if most := seconds * w.grants; len(w.oracle.presents) > most {
		w.violate("%d tokens presented, more than %d: a loop", len(w.oracle.presents), most)
	}
}

func TestModel(t *testing.T) {
	const lanes = 4
	for lane := range lanes {
		t.Run(fmt.Sprint("lane ", lane), func(t *testing.T) {
			t.Parallel()
			for n := lane; n < *schedules && !t.Failed(); n += lanes {
				seed := *firstSeed + uint64(n)
				if broken, trace := run(t, seed, nil); len(broken) > 0 {
					t.Errorf("seed %d: %s\n%s", seed, strings.Join(broken, "\n"), strings.Join(trace, "\n"))
				}
			}
		})
	}
}

// TestModelFindsBrokenProtocols breaks the protocol on purpose.
func TestModelFindsBrokenProtocols(t *testing.T) {
	for name, mutate := range map[string]func(*world){
		"commit by any predecessor": func(w *world) { w.redis.anyPredecessor = true },
		"another replica's lease is released": func(w *world) {
			w.redis.anyHolder = true
			w.schedule = schedule{replicas: 4, grants: 1, zoomFails: 0.9, pauses: true} // it takes three replicas
		},
		"a lease is ignored":         func(w *world) { w.redis.leaseIgnored = true },
		"no journal":                 func(w *world) { w.redis.pauses = nil },
		"failovers are not detected": func(w *world) { w.redis.failoversHidden = true },
		"an intent is ignored":       func(w *world) { w.redis.intentIgnored = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(5000) {
				if broken, _ := run(t, seed, mutate); len(broken) > 0 {
					t.Logf("found by seed %d: %s", seed, broken[0])
					return
				}
			}
			t.Error("the model does not detect it")
		})
	}
}
