package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is the state of a master of Redis, from INFO and CONFIG. Fields that it does
// not report are zero.
type Server struct {
	Addr             string
	Version          string
	Mode             string // standalone or cluster
	AppendOnly       bool
	SnapshotSchedule string        // Redis's setting save; empty: no snapshots, or unknown
	AppendFsync      string        // always, everysec or no; empty: unknown (CONFIG is not allowed)
	PersistenceError string        // last failure of its persistence, from INFO; empty: none
	Eviction         string        // maxmemory-policy
	MemoryUsed       int64         // bytes
	MemoryMax        int64         // bytes; 0: no bound
	Replicas         int           // online
	ReplicaLag       time.Duration // greatest lag of these
}

// Servers reads the state of every master.
func (c *Connection) Servers(ctx context.Context) ([]Server, error) {
	cluster, ok := c.UniversalClient.(*redis.ClusterClient)
	if !ok {
		one, err := describe(ctx, c.UniversalClient)
		if client, ok := c.UniversalClient.(*redis.Client); ok {
			one.Addr = client.Options().Addr
		}
		return []Server{one}, err
	}
	var mu sync.Mutex
	var all []Server
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		one, err := describe(ctx, master)
		one.Addr = master.Options().Addr
		mu.Lock()
		defer mu.Unlock()
		all = append(all, one)
		return err
	})
	return all, err
}

func describe(ctx context.Context, server redis.Cmdable) (Server, error) {
	info, err := server.Info(ctx).Result()
	if err != nil {
		return Server{}, fmt.Errorf("reading the state of Redis: %w", err)
	}
	number := func(name string) int64 { n, _ := strconv.ParseInt(infoValue(info, name), 10, 64); return n }
	s := Server{
		Version: infoValue(info, "redis_version"), Mode: infoValue(info, "redis_mode"),
		AppendOnly: infoValue(info, "aof_enabled") == "1", Eviction: infoValue(info, "maxmemory_policy"),
		MemoryUsed: number("used_memory"), MemoryMax: number("maxmemory"),
	}
	for _, field := range []string{"aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"} {
		if status := infoValue(info, field); status != "" && status != "ok" && s.PersistenceError == "" {
			s.PersistenceError = field + " " + status
		}
	}
	for i := range number("connected_slaves") {
		fields := infoValue(info, fmt.Sprintf("slave%d", i)) // ip=…,port=…,state=online,offset=…,lag=1
		if !strings.Contains(fields, "state=online") {
			continue
		}
		s.Replicas++
		if _, lag, found := strings.Cut(fields, "lag="); found {
			lag, _, _ = strings.Cut(lag, ",")
			seconds, _ := strconv.Atoi(lag)
			s.ReplicaLag = max(s.ReplicaLag, time.Duration(seconds)*time.Second)
		}
	}
	if config, err := server.ConfigGet(ctx, "appendfsync").Result(); err == nil { // managed services often deny it
		s.AppendFsync = config["appendfsync"]
	}
	if config, err := server.ConfigGet(ctx, "save").Result(); err == nil {
		s.SnapshotSchedule = config["save"]
	}
	return s, nil
}

// CheckPubSub checks that the Redis user may publish and subscribe, and that a
// message arrives.
func (c *Connection) CheckPubSub(ctx context.Context) error {
	channel := shardKey(0, "doctor")
	subscribe, publish := c.Subscribe, c.Publish
	if _, cluster := c.UniversalClient.(*redis.ClusterClient); cluster {
		subscribe, publish = c.SSubscribe, c.SPublish
	}
	link := subscribe(ctx, channel)
	defer func() { _ = link.Close() }()
	if _, err := link.Receive(ctx); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	if err := publish(ctx, channel, "").Err(); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	for {
		message, err := link.Receive(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the published message: %w", err)
		}
		if _, ok := message.(*redis.Message); ok {
			return nil
		}
	}
}
