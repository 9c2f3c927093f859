package tokenserver_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/tokenserver"
)

// liveTokens serves tokens that are valid for long enough, and renews none.
type liveTokens struct{}

func (liveTokens) CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool {
	return serving.CheckAlive() == nil && serving.HasTTL(ttl, now)
}

func (liveTokens) EnsureFresh(context.Context, grant.ID, grant.ServingRecord, time.Duration) (grant.ServingRecord, error) {
	return grant.ServingRecord{}, &grant.BackoffError{For: time.Second}
}

// fakeGrants is a store of many grants that can be down or slow.
type fakeGrants struct {
	mu      sync.Mutex
	records map[grant.ID]grant.ServingRecord
	err     error
	reads   int
	slow    chan struct{} // a read waits for it, once it has read
}

func (s *fakeGrants) ReadServingRecord(_ context.Context, id grant.ID) (grant.ServingRecord, error) {
	s.mu.Lock()
	s.reads++
	serving, known := s.records[id]
	err, slow := s.err, s.slow
	s.mu.Unlock()
	if slow != nil {
		<-slow
	}
	switch {
	case err != nil:
		return grant.ServingRecord{}, err
	case !known:
		return grant.ServingRecord{}, grant.ErrNotFound
	}
	return serving, nil
}

func (s *fakeGrants) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// readsSince returns the number of reads since its last call.
func (s *fakeGrants) readsSince() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.reads
	s.reads = 0
	return n
}

// memory is a handler in front of fakeGrants, without a network, for virtual time.
type memory struct {
	*fakeGrants
	t       *testing.T
	cache   *tokenserver.Cache
	handler http.Handler
}

func inBubble(t *testing.T, size int, test func(*memory)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &memory{fakeGrants: &fakeGrants{records: map[grant.ID]grant.ServingRecord{}}, t: t}
		var err error
		if m.cache, err = tokenserver.NewCache(m.fakeGrants, size, zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		m.handler = tokenserver.New(tokenserver.Config{
			Cache: m.cache, Tokens: liveTokens{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		})
		test(m)
	})
}

// add stores a user's grant and returns the path of its callback.
func (m *memory) add(user string) (grant.ID, string) {
	address := callback.NewAddress(grant.NewID("default", user))
	m.set(func() {
		m.records[address.ID] = grant.ServingRecord{
			State: grant.StateActive, Access: secret.New("token-of-" + user), Expires: time.Now().Add(time.Hour), Secrets: []grant.CallbackSecret{address.CallbackSecret()},
		}
	})
	return address.ID, path(address)
}

func path(a callback.Address) string { return callback.Prefix + string(a.ID) + "/" + a.Secret.Reveal() }

// get calls back and returns the status and the body.
func (m *memory) get(path string) (int, string) {
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(m.t.Context()))
	return w.Code, w.Body.String()
}

func (m *memory) want(path string, status int, body string, reads int) {
	m.t.Helper()
	got, text := m.get(path)
	if got != status || status == 200 && text != body {
		m.t.Errorf("responded %d %q, want %d %q", got, text, status, body)
	}
	if n := m.readsSince(); n != reads {
		m.t.Errorf("%d reads of the store, want %d", n, reads)
	}
}

func TestCachedRecordIsServedUntilItChanges(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		id, ann := m.add("ann")
		m.want(ann, 200, "token-of-ann", 1)
		for range 10 {
			m.want(ann, 200, "token-of-ann", 0)
		}
		renewed := m.records[id]
		renewed.Access = secret.New("renewed")
		m.set(func() { m.records[id] = renewed })
		m.cache.Invalidate(id)
		m.want(ann, 200, "renewed", 1)
		m.want(ann, 200, "renewed", 0)
		m.set(func() { delete(m.records, id) })
		m.cache.Invalidate(id)
		m.want(ann, 404, "", 1)
		m.want(ann, 404, "", 1)
	})
}

func TestRecordsAreUnverifiedWithoutTheChangeFeed(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		_, ann := m.add("ann")
		for range 3 { // not live yet
			m.want(ann, 200, "token-of-ann", 1)
		}
		m.cache.Synced()
		m.want(ann, 200, "token-of-ann", 1) // what was read before may be out of date
		m.want(ann, 200, "token-of-ann", 0)
		m.cache.Desynced(errors.New("connection cut"))
		for range 3 {
			m.want(ann, 200, "token-of-ann", 1)
		}
		m.cache.Synced()
		m.want(ann, 200, "token-of-ann", 1)
		m.want(ann, 200, "token-of-ann", 0)
	})
}

// TestRecordWithManySecrets: each of a record's secrets matches, however many it has.
func TestRecordWithManySecrets(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		id, _ := m.add("ann")
		var paths []string
		var secrets []grant.CallbackSecret
		for range 4 {
			address := callback.NewAddress(id)
			paths, secrets = append(paths, path(address)), append(secrets, address.CallbackSecret())
			serving := m.records[id]
			serving.Secrets = slices.Clone(secrets)
			m.set(func() { m.records[id] = serving })
			m.cache.Invalidate(id)
			m.want(paths[0], 200, "token-of-ann", 1)
			for _, path := range paths {
				m.want(path, 200, "token-of-ann", 0)
			}
		}
	})
}

// TestLossOfTheChangeFeedIsLoggedOnce: for each epoch that ends.
func TestLossOfTheChangeFeedIsLoggedOnce(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	cache, err := tokenserver.NewCache(&fakeGrants{}, 10, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	for epoch, want := range []int{0, 1, 2} {
		if epoch > 0 {
			cache.Synced()
		}
		for range 3 {
			cache.Desynced(errors.New("connection cut"))
		}
		if n := logs.FilterMessage("change feed lost; revalidating records").Len(); n != want {
			t.Errorf("after %d epochs the loss is logged %d times, want %d", epoch, n, want)
		}
	}
}

// TestOutageIsProbedOnceASecond: one request a second reads Redis, from exactly one
// second after the failed read.
func TestOutageIsProbedOnceASecond(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		_, ann := m.add("ann")
		m.want(ann, 200, "token-of-ann", 1)
		m.set(func() { m.err = store.ErrUnavailable })
		m.want(ann, 200, "token-of-ann", 1)
		for range 3 {
			time.Sleep(time.Second - 1)
			m.want(ann, 200, "token-of-ann", 0)
			time.Sleep(time.Nanosecond)
			m.want(ann, 200, "token-of-ann", 1)
			m.want(ann, 200, "token-of-ann", 0)
		}
	})
}

func TestOutage(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		id, ann := m.add("ann")
		_, bob := m.add("bob")
		m.want(ann, 200, "token-of-ann", 1)
		m.set(func() { m.err = fmt.Errorf("reading: %w", store.ErrUnavailable) })
		m.want(ann, 200, "token-of-ann", 0) // Redis is not read
		m.cache.Desynced(errors.New("connection cut"))
		m.want(ann, 200, "token-of-ann", 1) // Redis is read, and is down
		for range 100 {
			m.want(ann, 200, "token-of-ann", 0)
		}
		m.want(bob, 503, "", 0) // nothing to serve, and no time lost
		// A wrong secret does not show which grants are cached.
		m.want(path(callback.NewAddress(id)), 503, "", 0)
		m.want(path(callback.NewAddress(grant.NewID("default", "absent"))), 503, "", 0)
		time.Sleep(1100 * time.Millisecond)
		m.want(ann, 200, "token-of-ann", 1) // one a second tries
		m.want(ann, 200, "token-of-ann", 0)
		time.Sleep(time.Hour - grant.MinTTL - time.Second)
		m.want(ann, 503, "", 1) // the token is too old by now
		if m.cache.HasLiveTokens() {
			t.Error("HasLiveTokens with nothing to serve")
		}
		m.set(func() { m.err = nil })
		m.add("ann")
		time.Sleep(1100 * time.Millisecond)
		if status, _ := m.get(bob); status != 503 { // its token is an hour old as well
			t.Errorf("responded %d", status)
		}
		_, cid := m.add("cid")
		m.readsSince()
		m.want(cid, 200, "token-of-cid", 1)
	})
}

func TestRedisThatDoesNotReplyIsNotRead(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		_, ann := m.add("ann")
		m.want(ann, 200, "token-of-ann", 1)
		if !m.cache.HasLiveTokens() {
			t.Error("no HasLiveTokens with a token valid for an hour")
		}
		m.cache.Desynced(fmt.Errorf("following: %w", store.ErrNoReply))
		m.want(ann, 200, "token-of-ann", 0)
		// A read that hangs delays at most one request a second.
		hang := make(chan struct{})
		m.set(func() { m.slow = hang })
		time.Sleep(1100 * time.Millisecond)
		began := time.Now()
		m.want(ann, 200, "token-of-ann", 1)
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("served after %v", took)
		}
		m.want(ann, 200, "token-of-ann", 0)
		close(hang)
		m.set(func() { m.slow = nil })
		synctest.Wait()
		m.cache.Synced()
		m.want(ann, 200, "token-of-ann", 1)
	})
}

// TestSlowRedis: for a second, cached records are not revalidated; absent ones are
// read.
func TestSlowRedis(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		_, ann := m.add("ann")
		_, bob := m.add("bob")
		m.want(ann, 200, "token-of-ann", 1)
		m.cache.Desynced(errors.New("connection cut"))
		hang := make(chan struct{})
		m.set(func() { m.slow = hang })
		m.want(ann, 200, "token-of-ann", 1)
		m.want(ann, 200, "token-of-ann", 0)
		m.set(func() { m.slow = nil })
		m.want(bob, 200, "token-of-bob", 1)
		close(hang)
	})
}

func TestNewSecretMatchesBeforeItsChangeIsReported(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		id, old := m.add("ann")
		m.want(old, 200, "token-of-ann", 1)
		address := callback.NewAddress(id)
		m.want(path(address), 404, "", 1) // a guess costs one read, cached or not
		both := m.records[id]
		both.Secrets = []grant.CallbackSecret{both.Secrets[0], address.CallbackSecret()}
		both.Secrets[0].NotAfter = time.Now().Add(time.Minute)
		m.set(func() { m.records[id] = both })
		m.want(path(address), 200, "token-of-ann", 1)
		m.cache.Invalidate(id)
		m.want(old, 200, "token-of-ann", 1)
		m.want(path(address), 200, "token-of-ann", 0)
		time.Sleep(time.Minute)
		m.want(old, 404, "", 1) // has ended, though it is in memory
		m.want(path(address), 200, "token-of-ann", 0)
	})
}

func TestChangeDuringARead(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		id, ann := m.add("ann")
		hold := make(chan struct{})
		m.set(func() { m.slow = hold })
		served := make(chan string)
		for range 5 {
			go func() {
				_, body := m.get(ann)
				served <- body
			}()
		}
		synctest.Wait() // the old record has been read, by one for all
		if n := m.readsSince(); n != 1 {
			t.Errorf("%d reads, want 1", n)
		}
		renewed := m.records[id]
		renewed.Access = secret.New("renewed")
		m.set(func() { m.records[id], m.slow = renewed, nil })
		m.cache.Invalidate(id)
		close(hold)
		for range 5 {
			if body := <-served; body != "renewed" {
				t.Errorf("served %q, which was out of date when it was read", body)
			}
		}
		m.readsSince()
		m.want(ann, 200, "renewed", 0)
	})
}

func TestUndecryptableRecordIsNotServedFromTheCache(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		_, ann := m.add("ann")
		m.want(ann, 200, "token-of-ann", 1)
		m.set(func() { m.err = errors.New("does not decrypt") })
		m.want(ann, 503, "", 1)
	})
}

func TestCacheIsBounded(t *testing.T) {
	inBubble(t, 50, func(m *memory) {
		m.cache.Synced()
		var paths []string
		for i := range 1000 {
			_, path := m.add(fmt.Sprint("user-", i))
			paths = append(paths, path)
			m.get(path)
		}
		synctest.Wait() // evictions
		m.readsSince()
		for _, path := range paths {
			m.get(path)
		}
		if n := m.readsSince(); n < 900 {
			t.Errorf("%d of 1000 records were read, want 900 at least: the cache has room for 50", n)
		}
	})
}

func TestWaitingRequestsAreLimited(t *testing.T) {
	release := make(chan struct{})
	waiting := make(chan struct{}, 3)
	f := startWith(t, tokenserver.Config{MaxWaiting: 3, Tokens: renewFunc(
		func(_ context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
			waiting <- struct{}{}
			<-release
			return serving, nil
		})})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got := do(t, http.MethodGet, f.url(t), nil); got.status != 200 {
				t.Errorf("a waiting request: responded %d", got.status)
			}
		})
	}
	for range 3 {
		<-waiting
	}
	if got := do(t, http.MethodGet, f.url(t), nil); got.status != 503 || got.header.Get("Retry-After") != "1" {
		t.Errorf("one too many: responded %d, Retry-After %q", got.status, got.header.Get("Retry-After"))
	}
	close(release)
	wg.Wait()
	f.wantCount(t, "overloaded", 1)
}

func TestPanicIsContained(t *testing.T) {
	f := start(t, func(context.Context, grant.ID, grant.ServingRecord, time.Duration) (grant.ServingRecord, error) {
		panic("a fault that quotes " + token)
	}, nil)
	if got := do(t, http.MethodGet, f.url(t), nil); got.status != 500 || strings.Contains(got.body, token) {
		t.Errorf("responded %d %q", got.status, got.body)
	}
	if f.logs.FilterMessage("request panicked; responded 500").Len() != 1 {
		t.Error("the panic was not logged once")
	}
	f.wantCount(t, "panic", 1)
}

// TestCachedRecordIsServedWithFewAllocations: at most 5 more than the bare handler.
func TestCachedRecordIsServedWithFewAllocations(t *testing.T) {
	allocations := func(handler http.Handler, request *http.Request) float64 {
		return testing.AllocsPerRun(1000, func() {
			handler.ServeHTTP(&writer{header: http.Header{}}, request)
		})
	}
	for _, signed := range []bool{false, true} {
		handler, request := cachedHandler(t, signed)
		handler.ServeHTTP(&writer{header: http.Header{}}, request)
		if got, bare := allocations(handler, request), allocations(bareHandler(), request); got > bare+5 {
			t.Errorf("signed %v: %v allocations a request, the bare handler %v", signed, got, bare)
		}
	}
}
