package tokenserver_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/tokenserver"
)

// writer is a response writer that discards the body.
type writer struct {
	header http.Header
	bytes  int
}

func (w *writer) Header() http.Header { return w.header }
func (w *writer) Write(p []byte) (int, error) {
	w.bytes += len(p)
	return len(p), nil
}
func (w *writer) WriteString(s string) (int, error) { w.bytes += len(s); return len(s), nil }
func (w *writer) WriteHeader(int)                   {}

const zoomLike = 806 // bytes of a token

// cachedHandler returns a handler with one record in its cache, and a request for
// it.
func cachedHandler(tb testing.TB, signed bool) (http.Handler, *http.Request) {
	tb.Helper()
	address := callback.NewAddress(grant.NewID("default", "ann"))
	now := time.Now()
	source := &records{id: address.ID, serving: grant.ServingRecord{
		State: grant.StateActive, Access: secret.New(strings.Repeat("x", zoomLike)), Expires: now.Add(time.Hour),
		RenewTime: now.Add(50 * time.Minute), Secrets: []grant.CallbackSecret{address.CallbackSecret()},
	}}
	cache, err := tokenserver.NewCache(source, 1000, zap.NewNop())
	if err != nil {
		tb.Fatal(err)
	}
	cache.Synced()
	config := tokenserver.Config{
		Cache: cache, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		Tokens: &renewal.Renewer{Config: renewal.Config{HandOffGuard: 5 * time.Second}},
	}
	request, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, callback.Prefix+string(address.ID)+"/"+address.Secret.Reveal(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	if signed {
		const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
		if config.Verifier, err = tokenserver.NewVerifier([]secret.Text{secret.New(key)}); err != nil {
			tb.Fatal(err)
		}
		webhook, err := standardwebhooks.NewWebhook(key)
		if err != nil {
			tb.Fatal(err)
		}
		signature, err := webhook.Sign("msg_1", now, nil)
		if err != nil {
			tb.Fatal(err)
		}
		request.Header = http.Header{
			"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)}, "Webhook-Signature": {signature},
		}
	}
	return tokenserver.New(config), request
}

// bareHandler responds with as many bytes.
func bareHandler() http.Handler {
	token := strings.Repeat("x", zoomLike)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Length", strconv.Itoa(len(token)))
		_, _ = io.WriteString(w, token)
	})
}

func BenchmarkServe(b *testing.B) {
	cached, request := cachedHandler(b, false)
	signed, signedRequest := cachedHandler(b, true)
	for _, c := range []struct {
		name    string
		handler http.Handler
		request *http.Request
	}{
		{"bare", bareHandler(), request}, {"cached", cached, request}, {"cached and signed", signed, signedRequest},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := writer{header: http.Header{}}
				c.handler.ServeHTTP(&w, c.request)
				if w.bytes != zoomLike {
					b.Fatal("not served")
				}
			}
		})
	}
}
