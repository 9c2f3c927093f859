package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// RegisterMetrics measures commands and connections from now on. It must be called
// before the connection is used concurrently.
func (c *Connection) RegisterMetrics(registerer prometheus.Registerer) {
	m := &commandMetrics{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "tokenprovider_redis_command_duration_seconds",
			Help:                        "Time until Redis responded, by command; a script by its name.",
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
	var answered redis.Error
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
	case errors.As(err, &answered):
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

// Collector collects the number of grants and the state of Redis. Every replica of
// every program exports them, so that a query survives the loss of one: it takes the
// maximum. Without a reply from Redis only redis_up is exported.
type Collector struct {
	store *Store

	mu     sync.Mutex
	at     time.Time
	latest *counts // nil: Redis could not be read

	up, states, due, oldest, clock, memory, limit *prometheus.Desc
}

const (
	countAge     = 10 * time.Second // maximum age: scrapes share one count
	countTimeout = 2 * time.Second
)

// NewCollector returns a collector for a store. It does no I/O.
func NewCollector(s *Store) *Collector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tokenprovider_"+name, help, labels, nil)
	}
	return &Collector{
		store:  s,
		up:     describe("redis_up", "1 if Redis responded for this scrape, else 0."),
		states: describe("grants", "Number of grants, by state.", "state"),
		due:    describe("grants_due", "Grants whose renewal is due now."),
		oldest: describe("grants_oldest_due_seconds", "Time since the renewal time of the longest overdue grant, of the first in each due index; 0: none."),
		clock:  describe("redis_clock_offset_seconds", "Redis's clock minus this process's clock."),
		memory: describe("redis_memory_bytes", "Memory used by the fullest master of Redis."),
		limit:  describe("redis_memory_limit_bytes", "maxmemory of the fullest master of Redis; 0: none."),
	}
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.states, c.due, c.oldest, c.clock, c.memory, c.limit} {
		descriptions <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	now := c.current()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if now == nil {
		gauge(c.up, 0)
		return
	}
	gauge(c.up, 1)
	for state, n := range now.states {
		gauge(c.states, float64(n), string(state))
	}
	gauge(c.due, float64(now.due))
	gauge(c.oldest, now.oldest.Seconds())
	gauge(c.clock, now.offset.Seconds())
	if now.memory > 0 { // the embedded Redis does not say
		gauge(c.memory, now.memory)
		gauge(c.limit, now.limit)
	}
}

// current returns the latest count, nil if Redis could not be read.
func (c *Collector) current() *counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < countAge && c.latest != nil {
		return c.latest
	}
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	c.latest, c.at = nil, time.Now()
	if counted, err := c.store.count(ctx); err == nil {
		c.latest = counted
	}
	return c.latest
}

// counts is the result of counting.
type counts struct {
	states        map[grant.State]int64
	due           int64
	oldest        time.Duration
	offset        time.Duration // of Redis's clock
	memory, limit float64
}

// count counts the grants in three round trips: the Zoom apps of each shard, the
// sizes of the indexes, and the planned renewal of the first grant of each due
// index. Its score would not show how late it is, as each failure moves it.
func (s *Health) count(ctx context.Context) (*counts, error) {
	began := time.Now()
	clock, err := s.redis.Time(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("reading the time of Redis: %w", err)
	}
	now := &counts{states: map[grant.State]int64{}, offset: clock.Sub(began.Add(time.Since(began) / 2))}
	indexes, err := s.allDueKeys(ctx)
	if err != nil {
		return nil, err
	}
	var sizes [grant.Shards]map[grant.State]*redis.IntCmd
	due, next := make([]*redis.IntCmd, len(indexes)), make([]*redis.StringSliceCmd, len(indexes))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range grant.Shards {
			sizes[shard] = map[grant.State]*redis.IntCmd{}
			for _, state := range grant.States() {
				sizes[shard][state] = pipe.ZCard(ctx, usersKey(shard, state))
			}
		}
		for i, index := range indexes {
			due[i] = pipe.ZCount(ctx, index, "-inf", strconv.FormatInt(millis(clock), 10))
			next[i] = pipe.ZRange(ctx, index, 0, 0)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("counting grants: %w", err)
	}
	var plans []*redis.StringCmd
	_, err = s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range grant.Shards {
			for state, size := range sizes[shard] {
				now.states[state] += size.Val()
			}
		}
		for i := range indexes {
			now.due += due[i].Val()
			for _, id := range next[i].Val() {
				plans = append(plans, pipe.HGet(ctx, grantKey(grant.ID(id)), "renew_at"))
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // removed since
		return nil, fmt.Errorf("reading renewal times: %w", err)
	}
	for _, plan := range plans {
		if at, err := plan.Int64(); err == nil {
			now.oldest = max(now.oldest, clock.Sub(time.UnixMilli(at)))
		}
	}
	return now, s.readMemory(ctx, now)
}

// readMemory reads the memory of the masters.
func (s *Health) readMemory(ctx context.Context, now *counts) error {
	var mu sync.Mutex
	ask := func(ctx context.Context, master redis.Cmdable) error {
		info, err := master.Info(ctx, "memory").Result()
		var answered redis.Error
		if errors.As(err, &answered) { // the embedded Redis does not know the section
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the memory of Redis: %w", err)
		}
		used, _ := strconv.ParseFloat(infoValue(info, "used_memory"), 64)
		limit, _ := strconv.ParseFloat(infoValue(info, "maxmemory"), 64)
		mu.Lock()
		defer mu.Unlock()
		if fuller := limit > 0 && (now.limit == 0 || used/limit > now.memory/now.limit); fuller || now.limit == 0 && limit == 0 && used > now.memory {
			now.memory, now.limit = used, limit
		}
		return nil
	}
	if cluster, ok := s.redis.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error { return ask(ctx, master) })
	}
	return ask(ctx, s.redis)
}
