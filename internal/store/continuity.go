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

// FailoverDetector notices that Redis may have forgotten what it had acknowledged: a
// server has restarted, or a replica has taken over. It asks every new
// connection who is at the other end, before the connection is used. As no
// connection outlives a restart, no command can reach a restarted server before
// the restart has been noticed.
type FailoverDetector struct {
	breaks atomic.Int64

	mu    sync.Mutex
	known map[string]bool // identities of masters
	armed bool            // the masters that there were at the start are known
}

// young is the age at which a server that is met first counts as restarted just
// now.
const young = 10 * time.Second

// Failovers returns how often Redis may have forgotten something since the start.
// It does no I/O.
func (c *FailoverDetector) Failovers() int64 { return c.breaks.Load() }

// onConnect is go-redis's hook for new connections.
func (c *FailoverDetector) onConnect(ctx context.Context, connection *redis.Conn) error {
	return c.meet(ctx, connection)
}

// meet asks a server who it is.
func (c *FailoverDetector) meet(ctx context.Context, server interface {
	Info(ctx context.Context, section ...string) *redis.StringCmd
},
) error {
	info, err := server.Info(ctx, "server").Result()
	if err != nil {
		if _, refused := err.(redis.Error); refused { //nolint:errorlint // go-redis's own kind of answer
			return nil // the embedded Redis does not know the command: it does not forget either
		}
		return fmt.Errorf("asking Redis who it is: %w", err)
	}
	replication, err := server.Info(ctx, "replication").Result()
	if err != nil {
		return fmt.Errorf("asking Redis for its role: %w", err)
	}
	if infoField(replication, "role") != "master" {
		return nil // not written to; should it take over, it is met as a master
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
	if c.armed || uptime < young {
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

// CheckFailover asks every master who it is: a take-over need not break a
// connection. It is to be called at the start, and now and then.
func (s *Store) CheckFailover(ctx context.Context) error {
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

// Failovers returns how often Redis may have forgotten something; see
// [FailoverDetector.Failovers].
func (s *Store) Failovers() int64 {
	return s.continuity.Failovers()
}
