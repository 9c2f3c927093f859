package store

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// RegisterMetrics measures commands and connections from now on. It must be called
// before the connection is used concurrently.
func (c *Connection) RegisterMetrics(registerer prometheus.Registerer) {
	m := &commandMetrics{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_redis_command_duration_seconds",
			Help:                        "Time until Redis responds, by command; a script by its name.",
			Buckets:                     []float64{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"command"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_redis_errors_total",
			Help: "Failed commands and connections to Redis, by kind of fault.",
		}, []string{"kind"}),
	}
	for _, kind := range []string{faultUnreachable, faultTimeout, faultFull, faultReadOnly, faultRefused, faultLoading, faultPool, faultOther} {
		m.errors.WithLabelValues(kind)
	}
	c.AddHook(m)
	registerer.MustRegister(m.durations, m.errors, &poolCollector{
		client: c,
		connections: prometheus.NewDesc("tokenprovider_redis_pool_connections",
			"Connections to Redis, by state.", []string{"state"}, nil),
		timeouts: prometheus.NewDesc("tokenprovider_redis_pool_timeouts_total",
			"Commands that failed because all connections to Redis were in use.", nil, nil),
	})
}

// commandMetrics is go-redis's hook around every command.
type commandMetrics struct {
	durations *prometheus.HistogramVec
	errors    *prometheus.CounterVec
}

// The kinds of faults of Redis.
const (
	faultUnreachable = "unreachable" // no connection, or it broke
	faultTimeout     = "timeout"     // no response in time
	faultFull        = "full"        // maxmemory is reached: nothing can be written
	faultReadOnly    = "read_only"   // a replica responded instead of the master
	faultRefused     = "refused"     // password or permission
	faultLoading     = "loading"     // Redis is starting, or a part of a cluster is down
	faultPool        = "pool"        // all connections are in use
	faultOther       = "other"
)

// DialHook implements [redis.Hook].
func (m *commandMetrics) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		connection, err := next(ctx, network, addr)
		m.countError(ctx, err)
		return connection, err
	}
}

// ProcessHook implements [redis.Hook].
func (m *commandMetrics) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		began := time.Now()
		err := next(ctx, command)
		m.durations.WithLabelValues(label(command)).Observe(time.Since(began).Seconds())
		if !isHandshake(command) {
			m.countError(ctx, err)
		}
		return err
	}
}

// ProcessPipelineHook implements [redis.Hook].
func (m *commandMetrics) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, list []redis.Cmder) error {
		began := time.Now()
		err := next(ctx, list)
		m.durations.WithLabelValues("pipeline").Observe(time.Since(began).Seconds())
		if !slices.ContainsFunc(list, isHandshake) {
			m.countError(ctx, err)
		}
		return err
	}
}

// isHandshake reports whether a command sets up a new connection: go-redis sends
// some that an older Redis rejects, and ignores the error.
func isHandshake(command redis.Cmder) bool { return command.Name() == "client" }

func (m *commandMetrics) countError(ctx context.Context, err error) {
	if kind := faultOf(ctx, err); kind != "" {
		m.errors.WithLabelValues(kind).Inc()
	}
}

// faultOf returns the kind of fault, "" if the error is not a fault of Redis.
func faultOf(ctx context.Context, err error) string {
	var timeout interface{ Timeout() bool }
	var reply redis.Error
	switch {
	case err == nil, errors.Is(err, redis.Nil), redis.HasErrorPrefix(err, "NOSCRIPT"), errors.Is(err, redis.ErrClosed),
		errors.Is(err, context.Canceled), errors.Is(ctx.Err(), context.Canceled):
		return ""
	case redis.IsOOMError(err):
		return faultFull
	case redis.IsReadOnlyError(err):
		return faultReadOnly
	case redis.IsAuthError(err), redis.IsPermissionError(err):
		return faultRefused
	case redis.IsLoadingError(err), redis.IsClusterDownError(err), redis.IsMasterDownError(err):
		return faultLoading
	case errors.Is(err, redis.ErrPoolTimeout):
		return faultPool
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return faultTimeout
	case errors.As(err, &reply):
		return faultOther
	}
	return faultUnreachable
}

// labelled are the commands with a label of their own; any other is "other".
var labelled = map[string]bool{
	"get": true, "set": true, "hget": true, "hgetall": true, "hmget": true, "pttl": true, "ping": true, "info": true,
	"xrange": true, "zrange": true, "zrangebylex": true, "eval": true, "evalsha": true, "hello": true,
}

// label returns the label of a command.
func label(command redis.Cmder) string {
	name := command.Name()
	if name == "evalsha" {
		if args := command.Args(); len(args) > 1 {
			if sum, ok := args[1].(string); ok && scriptNames[sum] != "" {
				return scriptNames[sum]
			}
		}
	}
	if labelled[name] {
		return name
	}
	return "other"
}

// poolCollector collects the metrics of the connections.
type poolCollector struct {
	client                redis.UniversalClient
	connections, timeouts *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (p *poolCollector) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- p.connections
	descriptions <- p.timeouts
}

// Collect implements [prometheus.Collector].
func (p *poolCollector) Collect(metrics chan<- prometheus.Metric) {
	stats := p.client.PoolStats()
	gauge := func(state string, n uint32) {
		metrics <- prometheus.MustNewConstMetric(p.connections, prometheus.GaugeValue, float64(n), state)
	}
	gauge("idle", stats.IdleConns)
	gauge("used", stats.TotalConns-min(stats.IdleConns, stats.TotalConns))
	metrics <- prometheus.MustNewConstMetric(p.timeouts, prometheus.CounterValue, float64(stats.Timeouts))
}
