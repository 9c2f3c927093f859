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

// FailoverDetector detects that Redis may have lost acknowledged writes: a server
// restarted, or a replica was promoted. It reads the server's identity on every new
// connection before its first use. No connection survives a restart, so no command
// reaches a restarted server before the restart is detected.
type FailoverDetector struct {
	breaks atomic.Int64

	mu    sync.Mutex
	known map[string]bool // identities of masters
	armed bool            // the masters at the start are known
}

// restartAge: an unknown server with a shorter uptime counts as restarted.
const restartAge = 10 * time.Second

// Failovers returns how often Redis may have lost writes since the start. It does no
// I/O.
func (c *FailoverDetector) Failovers() int64 { return c.breaks.Load() }

// onConnect is go-redis's hook for new connections.
func (c *FailoverDetector) onConnect(ctx context.Context, connection *redis.Conn) error {
	return c.meet(ctx, connection)
}

// meet reads a server's identity.
func (c *FailoverDetector) meet(ctx context.Context, server interface {
	Info(ctx context.Context, section ...string) *redis.StringCmd
},
) error {
	info, err := server.Info(ctx, "server").Result()
	if err != nil {
		if _, refused := err.(redis.Error); refused { //nolint:errorlint // go-redis's own kind of answer
			return nil // the embedded Redis does not know the command, and loses no writes
		}
		return fmt.Errorf("reading the identity of Redis: %w", err)
	}
	replication, err := server.Info(ctx, "replication").Result()
	if err != nil {
		return fmt.Errorf("reading the role of Redis: %w", err)
	}
	if infoField(replication, "role") != "master" {
		return nil // a replica is not written to
	}
	uptime, err := strconv.Atoi(infoField(info, "uptime_in_seconds"))
	if err != nil {
		uptime = 0
	}
	c.saw(infoField(info, "run_id")+" "+infoField(replication, "master_replid"), time.Duration(uptime)*time.Second)
	return nil
}

func (c *FailoverDetector) saw(identity string, uptime time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[identity] {
		return
	}
	if c.known == nil {
		c.known = map[string]bool{}
	}
	c.known[identity] = true
	if c.armed || uptime < restartAge {
		c.breaks.Add(1)
	}
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// CheckFailover reads the identity of every master: a failover need not break a
// connection. It must be called at the start, and then regularly.
func (s *Health) CheckFailover(ctx context.Context) error {
	var err error
	switch client := s.redis.(type) {
	case *redis.ClusterClient:
		err = client.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
			return s.continuity.meet(ctx, master)
		})
	case *redis.Client:
		err = s.continuity.meet(ctx, client)
	}
	if err != nil {
		return err
	}
	s.continuity.mu.Lock()
	s.continuity.armed = true
	s.continuity.mu.Unlock()
	return nil
}

// Failovers returns how often Redis may have lost writes; see
// [FailoverDetector.Failovers].
func (s *Health) Failovers() int64 {
	return s.continuity.Failovers()
}
