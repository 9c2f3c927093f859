package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

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
	if now.memory > 0 { // the embedded Redis does not report it
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
// sizes of the indexes, and the renewal time of the first grant of each due index.
// The score of that grant is not its delay, as each failure moves the score.
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
	readMaster := func(ctx context.Context, master redis.Cmdable) error {
		info, err := master.Info(ctx, "memory").Result()
		var reply redis.Error
		if errors.As(err, &reply) { // the embedded Redis rejects the section
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
		return cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error { return readMaster(ctx, master) })
	}
	return readMaster(ctx, s.redis)
}
