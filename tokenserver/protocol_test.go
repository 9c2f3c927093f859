package tokenserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/tokenserver"
)

// toy is a second protocol, such as another bot vendor's. This file is all that
// it takes: POST /toy with the grant's id and secret in a JSON body, JSON in
// response, and 404 whenever there is no token.
type toy struct{ lookup *tokenserver.Lookup }

func (toy) Name() string    { return "toy" }
func (toy) Pattern() string { return "/toy/" }

func (p toy) Serve(w http.ResponseWriter, r *http.Request, now time.Time) tokenserver.Outcome {
	var body struct{ Credential, Fault string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		body.Credential = ""
	}
	if body.Fault != "" {
		panic(body.Fault)
	}
	address, _ := callback.ParsePath(body.Credential)
	record, err := p.lookup.Find(r.Context(), address.ID, func(serving *grant.ServingRecord) bool {
		return address.Matches(serving.Secrets, now)
	})
	if err != nil {
		tokenserver.WriteNotFound(w)
		return tokenserver.OutcomeUnknown
	}
	serving, err := p.lookup.EnsureFresh(r.Context(), address.ID, record, now)
	if err != nil {
		tokenserver.WriteNotFound(w)
		if errors.Is(err, tokenserver.ErrOverloaded) {
			return tokenserver.OutcomeOverloaded
		}
		return tokenserver.OutcomeUnavailable
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"token": serving.Access.Reveal()})
	return tokenserver.OutcomeServed
}

// toyServer is a handler with the toy mounted besides Recall's callback.
func toyServer(t *testing.T, tokens tokenserver.TokenSource, maxWaiting int, test func(m *memory, ask func(credential, fault string) (int, string), want func(outcome string, n float64), logs *observer.ObservedLogs)) {
	t.Helper()
	inBubble(t, 10, func(m *memory) {
		registry := prometheus.NewRegistry()
		core, logs := observer.New(zap.DebugLevel)
		handler := tokenserver.New(tokenserver.Config{
			Cache: m.cache, Tokens: tokens, Log: zap.New(core), Metrics: registry, MaxWaiting: maxWaiting,
		})
		handler.Mount(toy{handler.Lookup})
		m.handler = handler
		m.cache.Synced()
		ask := func(credential, fault string) (int, string) {
			body := fmt.Sprintf(`{"credential":%q,"fault":%q}`, credential, fault)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/toy/tokens", strings.NewReader(body)).WithContext(m.t.Context()))
			return w.Code, w.Body.String()
		}
		test(m, ask, func(outcome string, n float64) {
			m.t.Helper()
			series := fmt.Sprintf(`tokenprovider_callbacks_total{outcome=%q,protocol="toy"}`, outcome)
			if got := testkit.MetricValue(m.t, registry, series); got != n {
				m.t.Errorf("%s is %v, want %v", series, got, n)
			}
		}, logs)
	})
}

func TestSecondProtocolIsServed(t *testing.T) {
	toyServer(t, liveTokens{}, 0, func(m *memory, ask func(string, string) (int, string), want func(string, float64), _ *observer.ObservedLogs) {
		id, ann := m.add("ann")
		if status, body := ask(ann, ""); status != 200 || body != `{"token":"token-of-ann"}`+"\n" {
			m.t.Errorf("responded %d %q", status, body)
		}
		m.want(ann, 200, "token-of-ann", 1) // Recall's callback shares the cached record
		want("served", 1)

		_, unknown := m.get("/elsewhere")
		for _, credential := range []string{"", "x", path(callback.NewAddress(id)), path(callback.NewAddress(grant.NewID("default", "bob")))} {
			if status, body := ask(credential, ""); status != 404 || body != unknown {
				m.t.Errorf("responded %d %q, want the 404 of every unknown path", status, body)
			}
		}
		want("unknown", 4)
		if status, _ := m.get("/toy"); status != 404 {
			m.t.Errorf("/toy: responded %d", status)
		}
		want("unknown", 4) // a prefix matches the paths below it only
	})
}

func TestSecondProtocolFallsBackToTheCachedRecord(t *testing.T) {
	toyServer(t, liveTokens{}, 0, func(m *memory, ask func(string, string) (int, string), want func(string, float64), _ *observer.ObservedLogs) {
		_, ann := m.add("ann")
		ask(ann, "")
		m.set(func() { m.err = store.ErrUnavailable })
		m.cache.Desynced(store.ErrNoReply)
		if status, _ := ask(ann, ""); status != 200 {
			m.t.Errorf("responded %d with Redis unavailable", status)
		}
		time.Sleep(2 * time.Hour) // the token expires, and liveTokens renews nothing
		if status, _ := ask(ann, ""); status != 404 {
			m.t.Errorf("responded %d without a valid token", status)
		}
		want("served", 2)
		want("unavailable", 1)
	})
}

func TestSecondProtocolSharesTheLimitOnWaiting(t *testing.T) {
	var ask func(string, string) (int, string)
	var ann string
	var inner int
	renew := renewFunc(func(_ context.Context, _ grant.ID, serving grant.ServingRecord, _ time.Duration) (grant.ServingRecord, error) {
		inner, _ = ask(ann, "") // while the one place is taken
		return serving, nil
	})
	toyServer(t, renew, 1, func(m *memory, asks func(string, string) (int, string), want func(string, float64), _ *observer.ObservedLogs) {
		ask = asks
		_, ann = m.add("ann")
		m.want(ann, 200, "token-of-ann", 1) // a callback, which waits for the renewal
		if inner != 404 {
			m.t.Errorf("responded %d, want 404", inner)
		}
		want("overloaded", 1)
	})
}

func TestSecondProtocolPanics(t *testing.T) {
	toyServer(t, liveTokens{}, 0, func(m *memory, ask func(string, string) (int, string), want func(string, float64), logs *observer.ObservedLogs) {
		_, ann := m.add("ann")
		if status, body := ask(ann, "a fault that quotes "+token); status != 500 || strings.Contains(body, token) {
			m.t.Errorf("responded %d %q", status, body)
		}
		entries := logs.FilterMessage("request panicked; responded 500").All()
		if len(entries) != 1 || entries[0].ContextMap()["protocol"] != "toy" || strings.Contains(fmt.Sprint(entries[0].ContextMap()), token) {
			m.t.Errorf("logged %v", entries)
		}
		want("panic", 1)
		m.want(ann, 200, "token-of-ann", 1) // the other protocol is not affected
	})
}
