package tokenserver_test

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/tokenserver"
)

// measured runs a test of a handler and a cache with metrics.
func measured(t *testing.T, test func(m *memory, want func(series string, value float64))) {
	t.Helper()
	inBubble(t, 10, func(m *memory) {
		registry := prometheus.NewRegistry()
		m.cache.RegisterMetrics(registry)
		m.handler = tokenserver.New(tokenserver.Config{Cache: m.cache, Tokens: liveTokens{}, Log: zap.NewNop(), Metrics: registry})
		test(m, func(series string, value float64) {
			m.t.Helper()
			synctest.Wait()
			if got := testkit.MetricValue(m.t, registry, "tokenprovider_"+series); got != value {
				m.t.Errorf("%s is %v, want %v", series, got, value)
			}
		})
	})
}

func TestCallbacksAreCounted(t *testing.T) {
	measured(t, func(m *memory, want func(string, float64)) {
		m.cache.Synced()
		_, path := m.add("ann")
		want(`callbacks_total{outcome="served",protocol="recall"}`, 0) // there from the start, for increase()
		for range 3 {
			m.get(path)
		}
		want(`callbacks_total{outcome="served",protocol="recall"}`, 3)
		want(`callbacks_total{outcome="served",protocol="recall"}`, 3) // collected twice
		want(`callback_duration_seconds{protocol="recall",served="true"}`, 3)
		want(`served_token_life_seconds`, 3)
		m.get(path + "x")
		want(`callbacks_total{outcome="unknown",protocol="recall"}`, 1)
		want(`callback_duration_seconds{protocol="recall",served="false"}`, 1)
		want(`callbacks_waiting`, 0)
	})
}

func TestReadsOfTheCacheAreCounted(t *testing.T) {
	measured(t, func(m *memory, want func(string, float64)) {
		id, path := m.add("ann")
		want(`cache_synced`, 0)
		m.cache.Synced()
		want(`cache_synced`, 1)
		m.get(path)
		m.get(path)
		want(`cache_reads_total{reason="miss"}`, 1)
		want(`cache_records`, 1)
		other := path[:len(path)-4] + "AAAA"
		m.get(other)
		want(`cache_reads_total{reason="secret"}`, 1)
		m.cache.Desynced(fmt.Errorf("gone"))
		want(`cache_synced`, 0)
		m.get(path)
		want(`cache_reads_total{reason="unverified"}`, 1)
		m.set(func() { m.err = store.ErrUnavailable })
		m.get(path)
		m.get(path) // Redis is not read: it is known to be down
		want(`cache_reads_total{reason="unverified"}`, 2)
		want(`cache_unverified_total`, 2)
		m.cache.Invalidate(id)
		m.cache.Invalidate(id) // no longer cached
		want(`cache_invalidations_total`, 1)
	})
}

// TestTokensEndedInUse: a token that is renewed within 3 s of being served is
// counted. A later renewal is not, nor is any other change.
func TestTokensEndedInUse(t *testing.T) {
	const ended = `tokens_ended_in_use_total`
	measured(t, func(m *memory, want func(string, float64)) {
		m.cache.Synced()
		id, path := m.add("ann")
		renew := func(token string) {
			m.set(func() {
				serving := m.records[id]
				serving.Access = secret.New(token)
				m.records[id] = serving
			})
			m.cache.Invalidate(id)
		}
		m.get(path)
		time.Sleep(3 * time.Second)
		renew("two")
		want(ended, 0)
		m.get(path)
		m.cache.Invalidate(id) // the same token
		want(ended, 0)
		m.get(path)
		time.Sleep(2900 * time.Millisecond)
		renew("three")
		want(ended, 1)
		renew("four") // the third was not served
		want(ended, 1)
	})
}

// TestWithoutMetrics: a handler without metrics serves and refuses.
func TestWithoutMetrics(t *testing.T) {
	inBubble(t, 10, func(m *memory) {
		m.cache.Synced()
		_, path := m.add("ann")
		m.handler = tokenserver.New(tokenserver.Config{Cache: m.cache, Tokens: liveTokens{}, Log: zap.NewNop()})
		m.want(path, 200, "token-of-ann", 1)
		m.want(path, 200, "token-of-ann", 0)
		w := httptest.NewRecorder()
		m.handler.ServeHTTP(w, httptest.NewRequest("POST", path, nil))
		if w.Code != 405 {
			t.Errorf("responded %d", w.Code)
		}
	})
}
