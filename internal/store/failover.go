package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// FailoverDetector detects that Redis may have lost acknowledged writes: a server has
// restarted, or a replica was promoted. It reads the server's identity on every new
// connection before its first use. No connection survives a restart, so no command
// reaches a restarted server before the restart is detected.
type FailoverDetector struct {
	count atomic.Int64

	mu      sync.Mutex
	known   map[string]bool // identities of masters
	started bool            // the masters at the start are known
}

// restartUptime: an unknown server with a shorter uptime counts as restarted.
const restartUptime = 10 * time.Second

// Failovers returns how often Redis may have lost writes since the start. It does no
// I/O.
func (c *FailoverDetector) Failovers() int64 { return c.count.Load() }

// onConnect is go-redis's hook for new connections.
func (c *FailoverDetector) onConnect(ctx context.Context, connection *redis.Conn) error {
	return c.identify(ctx, connection)
}

// identify reads a server's identity.
func (c *FailoverDetector) identify(ctx context.Context, server interface {
	Info(ctx context.Context, section ...string) *redis.StringCmd
},
) error {
	info, err := server.Info(ctx, "server").Result()
	if err != nil {
		if _, refused := err.(redis.Error); refused { //nolint:errorlint // the type of error replies
			return nil // the embedded Redis rejects the command, and loses no writes
		}
		return fmt.Errorf("reading the identity of Redis: %w", err)
	}
	replication, err := server.Info(ctx, "replication").Result()
	if err != nil {
		return fmt.Errorf("reading the role of Redis: %w", err)
	}
	if infoValue(replication, "role") != "master" {
		return nil // a replica is not written to
	}
	uptime, err := strconv.Atoi(infoValue(info, "uptime_in_seconds"))
	if err != nil {
		uptime = 0
	}
	c.observe(infoValue(info, "run_id")+" "+infoValue(replication, "master_replid"), time.Duration(uptime)*time.Second)
	return nil
}

func (c *FailoverDetector) observe(identity string, uptime time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[identity] {
		return
	}
	if c.known == nil {
		c.known = map[string]bool{}
	}
	c.known[identity] = true
	if c.started || uptime < restartUptime {
		c.count.Add(1)
	}
}

func infoValue(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// CheckFailover reads the identity of every master, as a failover may not break a
// connection. It must be called at the start, and then regularly.
func (s *Health) CheckFailover(ctx context.Context) error {
	var err error
	switch client := s.redis.(type) {
	case *redis.ClusterClient:
		err = client.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
			return s.failovers.identify(ctx, master)
		})
	case *redis.Client:
		err = s.failovers.identify(ctx, client)
	}
	if err != nil {
		return err
	}
	s.failovers.mu.Lock()
	s.failovers.started = true
	s.failovers.mu.Unlock()
	return nil
}

// Failovers returns how often Redis may have lost writes; see
// [FailoverDetector.Failovers].
func (s *Health) Failovers() int64 {
	return s.failovers.Failovers()
}
