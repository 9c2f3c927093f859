package keyset_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// records is a [keyset.Store] whose results a test sets. The test holds mu, except
// in after.
type records struct {
	mu     sync.Mutex
	by     uint32 // key of the last complete run
	byErr  error
	locked bool // by another replica
	run    func(ctx context.Context, progress func(store.ReencryptProgress)) (store.ReencryptProgress, error)

	runs, unlocks int
	perSecond     int
	ttl           time.Duration
}

func (r *records) ReencryptedBy(context.Context) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by, r.byErr
}

func (r *records) SetReencryptedBy(_ context.Context, id uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by = id
	return nil
}

func (r *records) LockReencryption(_ context.Context, ttl time.Duration) (func(), bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ttl = ttl
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.unlocks++
	}, !r.locked, nil
}

func (r *records) Reencrypt(ctx context.Context, perSecond int, progress func(store.ReencryptProgress)) (store.ReencryptProgress, error) {
	r.mu.Lock()
	r.runs, r.perSecond = r.runs+1, perSecond
	run := r.run
	r.mu.Unlock()
	if run != nil {
		return run(ctx, progress)
	}
	return store.ReencryptProgress{}, nil
}

// promoted returns a keyset with another primary key.
func promoted(t *testing.T) *seal.Keyset {
	t.Helper()
	_, keys := testkit.KeysetJSON(t)
	return keys
}

// reencrypting runs a Reencrypter on virtual time while test runs.
func reencrypting(t *testing.T, r *records, configure func(*keyset.Reencrypter), test func(t *testing.T, keys *seal.Keyset, logs *observer.ObservedLogs)) {
	t.Helper()
	keys := testkit.Keyset(t)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		re := &keyset.Reencrypter{Store: r, Keyset: keys, Log: zap.New(core)}
		if configure != nil {
			configure(re)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			re.Run(ctx)
		}()
		r.mu.Lock()
		test(t, keys, logs)
		r.mu.Unlock()
		cancel()
		<-ended
		if n := logs.FilterLevelExact(zap.WarnLevel).FilterField(zap.Error(context.Canceled)).Len(); n > 0 {
			t.Error("the end of the program is logged as a failure")
		}
	})
}

// after releases the lock until a time has passed and all others are blocked.
func (r *records) after(d time.Duration) {
	r.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	r.mu.Lock()
}

func TestReencryptionWaitsForEveryProcess(t *testing.T) {
	next := promoted(t)
	r := &records{}
	reencrypting(t, r, nil, func(t *testing.T, keys *seal.Keyset, _ *observer.ObservedLogs) {
		if r.after(2*time.Minute - time.Second); r.runs != 0 {
			t.Error("begun before the first wait was over")
		}
		r.after(2 * time.Second)
		if r.runs != 1 || r.by != keys.Primary() || r.perSecond != 1000 || r.ttl != time.Minute || r.unlocks != 1 {
			t.Errorf("%d runs with %d a second, lock of %v released %d times, mark %d", r.runs, r.perSecond, r.ttl, r.unlocks, r.by)
		}
		if r.after(time.Hour); r.runs != 1 {
			t.Errorf("%d runs by the same key", r.runs)
		}
		keys.Replace(next)
		r.after(2 * time.Minute)
		if r.runs != 1 {
			t.Error("begun before the wait after the promotion was over")
		}
		r.after(30 * time.Second)
		if r.runs != 2 || r.by != next.Primary() {
			t.Errorf("%d runs, mark %d, want 2 and %d", r.runs, r.by, next.Primary())
		}
	})
}

func TestReencryptionTakesItsSettings(t *testing.T) {
	r := &records{}
	reencrypting(t, r, func(re *keyset.Reencrypter) { re.Wait, re.PerSecond = 4*time.Second, 7 }, func(t *testing.T, _ *seal.Keyset, _ *observer.ObservedLogs) {
		if r.after(3500 * time.Millisecond); r.runs != 0 {
			t.Error("begun too early")
		}
		if r.after(time.Second); r.runs != 1 || r.perSecond != 7 {
			t.Errorf("%d runs with %d a second", r.runs, r.perSecond)
		}
	})
}

func TestOneReplicaReencrypts(t *testing.T) {
	r := &records{locked: true}
	reencrypting(t, r, nil, func(t *testing.T, keys *seal.Keyset, logs *observer.ObservedLogs) {
		r.after(10 * time.Minute)
		if r.runs != 0 || logs.Len() != 0 || r.unlocks != 0 {
			t.Errorf("%d runs, %d log lines while another replica has the lock", r.runs, logs.Len())
		}
		r.locked = false
		if r.after(time.Minute); r.runs != 1 || r.by != keys.Primary() {
			t.Errorf("%d runs after the other replica has ended", r.runs)
		}
	})
}

func TestReencryptionIsRetried(t *testing.T) {
	r := &records{run: func(context.Context, func(store.ReencryptProgress)) (store.ReencryptProgress, error) {
		return store.ReencryptProgress{}, errors.New("Redis is down")
	}}
	reencrypting(t, r, nil, func(t *testing.T, keys *seal.Keyset, logs *observer.ObservedLogs) {
		r.after(2*time.Minute + time.Second)
		if r.runs != 1 || r.by != 0 || r.unlocks != 1 || logs.FilterLevelExact(zap.WarnLevel).Len() != 1 {
			t.Errorf("%d runs, mark %d, %d releases, logged %v", r.runs, r.by, r.unlocks, logs.All())
		}
		r.run = nil
		if r.after(30 * time.Second); r.by != keys.Primary() {
			t.Error("not repeated")
		}
		r.byErr = errors.New("Redis is down")
		if r.after(30 * time.Second); logs.FilterLevelExact(zap.WarnLevel).Len() != 2 || r.runs != 2 {
			t.Errorf("a mark that cannot be read: %d runs, logged %v", r.runs, logs.All())
		}
	})
}

func TestReencryptionEndsWithTheProgram(t *testing.T) {
	r := &records{run: func(ctx context.Context, _ func(store.ReencryptProgress)) (store.ReencryptProgress, error) {
		<-ctx.Done()
		return store.ReencryptProgress{}, ctx.Err()
	}}
	reencrypting(t, r, nil, func(t *testing.T, _ *seal.Keyset, _ *observer.ObservedLogs) {
		if r.after(3 * time.Minute); r.runs != 1 {
			t.Errorf("%d runs", r.runs)
		}
	})
	if r.by != 0 {
		t.Error("an interrupted run is marked as complete")
	}
}

func TestAKeyPromotedDuringReencryption(t *testing.T) {
	next := promoted(t)
	r := &records{}
	reencrypting(t, r, nil, func(t *testing.T, keys *seal.Keyset, _ *observer.ObservedLogs) {
		r.run = func(context.Context, func(store.ReencryptProgress)) (store.ReencryptProgress, error) {
			keys.Replace(next)
			return store.ReencryptProgress{}, nil
		}
		if r.after(2*time.Minute + time.Second); r.runs != 1 || r.by != 0 {
			t.Errorf("%d runs, mark %d: the run was for the key before", r.runs, r.by)
		}
		r.run = nil
		if r.after(3 * time.Minute); r.by != next.Primary() {
			t.Errorf("mark %d, want %d", r.by, next.Primary())
		}
	})
}

func TestReencryptionLogsProgressAndUndecryptableGrants(t *testing.T) {
	r := &records{run: func(_ context.Context, progress func(store.ReencryptProgress)) (store.ReencryptProgress, error) {
		var p store.ReencryptProgress
		for _, pause := range []time.Duration{10, 6, 10, 1} { // reported after 16 and 27 s
			time.Sleep(pause * time.Second)
			p.Scanned++
			progress(p)
		}
		p.Undecryptable = 3
		return p, nil
	}}
	reencrypting(t, r, nil, func(t *testing.T, keys *seal.Keyset, logs *observer.ObservedLogs) {
		r.after(2*time.Minute + 28*time.Second)
		var seen []any
		for _, entry := range logs.All()[1:] {
			seen = append(seen, entry.ContextMap()["grants"])
		}
		if len(seen) != 4 || seen[0] != int64(2) || seen[1] != int64(4) || seen[2] != int64(3) || seen[3] != int64(4) {
			t.Errorf("logged grants %v, want 2 and 4 as progress, 3 that no key decrypts, and 4 in all", seen)
		}
		if n := logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 {
			t.Errorf("%d errors", n)
		}
		if r.by != keys.Primary() {
			t.Error("not marked: the grants that no key decrypts would be tried again and again")
		}
		r.by, r.run = 0, nil
		if r.after(30 * time.Second); logs.FilterLevelExact(zap.ErrorLevel).Len() != 1 {
			t.Error("a run without failures is logged as one")
		}
	})
}
