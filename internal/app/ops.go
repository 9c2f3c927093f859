package app

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tokenprovider/internal/config"
)

// Readiness is whether the program should be sent work.
type Readiness struct {
	// Check says what is missing; nil if nothing is.
	Check func(ctx context.Context) error
	// Drain is how long, once readiness has ended at a stop, the program goes on
	// taking work: time for load balancers to see it.
	Drain time.Duration

	stopping atomic.Bool
}

// Part makes readiness end when the program stops. It belongs last, so that it
// is stopped first, and the rest once the load balancers have seen it.
func (r *Readiness) Part() Part {
	return Part{Name: "readiness", Stop: func(ctx context.Context) error {
		r.stopping.Store(true)
		select {
		case <-time.After(r.Drain):
		case <-ctx.Done():
		}
		return nil
	}}
}

// Draining asks clients to leave their connections while readiness has ended,
// each with the answer to its last request: a connection that is closed between
// two may cost the second.
func (r *Readiness) Draining(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if r.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, request)
	})
}

// Ready returns nil if the program should be sent work.
func (r *Readiness) Ready(ctx context.Context) error {
	if r.stopping.Load() {
		return errors.New("stopping")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return r.Check(ctx)
}

// Metrics returns a registry with what every program tells of itself.
func Metrics(program string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tokenprovider_build_info", Help: "Always 1; program and version are the labels.",
	}, []string{"program", "version"})
	build.WithLabelValues(program, config.Version()).Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Ops handles what is for operators and never exposed: /healthz (the process
// lives; it never depends on Redis), /readyz and /metrics.
func Ops(ready *Readiness, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := ready.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}
