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

// Readiness decides whether load balancers should send work to the program.
type Readiness struct {
	// Check returns the reason why the program is not ready, or nil.
	Check func(ctx context.Context) error
	// Drain is the time between the end of readiness and the stop of the other
	// parts, in which load balancers remove the process.
	Drain time.Duration

	stopping atomic.Bool
}

// Part returns a part that ends readiness when the program stops. It must be the
// last part, because the last is stopped first.
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

// Draining closes each connection with a response after readiness has ended. To
// close it between two requests could lose the second.
func (r *Readiness) Draining(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if r.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, request)
	})
}

// Ready returns the reason why the program is not ready, or nil.
func (r *Readiness) Ready(ctx context.Context) error {
	if r.stopping.Load() {
		return errors.New("stopping")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return r.Check(ctx)
}

// Metrics returns a registry with the metrics of every program.
func Metrics(program string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tokenprovider_build_info", Help: "Always 1; program and version are the labels.",
	}, []string{"program", "version"})
	build.WithLabelValues(program, config.Version()).Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Ops returns the handler of /healthz (200 while the process runs, also without
// Redis), /readyz and /metrics. Never expose it.
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
