package e2e_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/app"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/tokenserver"
)

// BenchmarkObserving compares the token server's handler with and without metrics, and
// the token server with and without one trace in a hundred. It requires wrk.
func BenchmarkObserving(b *testing.B) {
	v := newFixture(b, benchCredentials, "--appendfsync", "no")
	var traces atomic.Int64 // requests to the collector
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		traces.Add(1)
	}))
	defer collector.Close()
	tracing := []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01",
	}
	handler := func(name, kind string) *subject {
		address, pid := startBaseline(b, kind, v.redis.URL(), "E2E_KEYSET="+v.file)
		return &subject{name: name, base: "http://" + address, pid: pid, paths: v.paths}
	}
	tokenServer := func(name string, env ...string) *subject {
		p, base, _ := v.tokenServer(env...)
		return &subject{name: name, base: base, pid: p.command.Process.Pid, paths: v.paths}
	}
	all := []*subject{
		handler("without metrics", "unmeasured"),
		handler("with metrics", "measured"),
		tokenServer("without traces"),
		tokenServer("1 % traced", tracing...),
		tokenServer("nothing in memory, without traces", "CACHE_SIZE=1"),
		tokenServer("nothing in memory, 1 % traced", append(tracing, "CACHE_SIZE=1")...),
	}
	for b.Loop() {
		for range *benchRounds {
			for _, c := range all {
				c.load(b)
			}
		}
	}
	report(b, all)
	if traces.Load() == 0 {
		b.Error("no trace was exported")
	}
}

// instrumentedHandler returns the token server's handler, with metrics if kind is
// "measured". Only in this binary can it omit the metrics.
func instrumentedHandler(kind string) http.Handler {
	text, err := os.ReadFile(os.Getenv("E2E_KEYSET"))
	if err != nil {
		panic(err)
	}
	keyset, err := seal.Parse(text)
	if err != nil {
		panic(err)
	}
	connection, err := store.Connect(secret.New(os.Getenv("E2E_REDIS")))
	if err != nil {
		panic(err)
	}
	grants := store.New(connection, keyset)
	cache, err := tokenserver.NewCache(grants, 100_000, zap.NewNop())
	if err != nil {
		panic(err)
	}
	go grants.Subscribe(context.Background(), cache)
	config := tokenserver.Config{Cache: cache, Tokens: cachedTokens{}, Log: zap.NewNop()}
	if kind == "measured" {
		metrics := app.Metrics("tokenserver")
		cache.RegisterMetrics(metrics)
		config.Metrics = metrics
	}
	return tokenserver.New(config)
}

// cachedTokens is a [tokenserver.TokenSource] that never renews a token.
type cachedTokens struct{}

func (cachedTokens) CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool {
	return serving.Expires.Sub(now) >= ttl
}

func (cachedTokens) EnsureFresh(context.Context, grant.ID, grant.ServingRecord, time.Duration) (grant.ServingRecord, error) {
	return grant.ServingRecord{}, grant.ErrReauthorize
}
