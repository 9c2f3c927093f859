package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tokenprovider/internal/store"
)

const (
	noRedis     = "REDIS_URL is not set, or invalid"
	redisSilent = "Redis does not respond"
)

// servers returns the state of every master, or the finding of a check that needs it
// if a master does not report its state.
func (c Config) servers(ctx context.Context) ([]store.Server, *Finding) {
	if c.Redis == nil {
		f := notChecked(noRedis)
		return nil, &f
	}
	servers, err := c.Redis.Servers(ctx)
	switch {
	case err != nil && strings.Contains(err.Error(), "NOPERM"):
		f := warning("grant +info to the user of REDIS_URL: the programs detect a restart of Redis with it",
			"the user of REDIS_URL may not call INFO")
		return nil, &f
	case err != nil:
		f := notChecked(redisSilent)
		return nil, &f
	}
	return servers, nil
}

// worst returns the worst finding of all masters.
func worst(servers []store.Server, judge func(store.Server) Finding) Finding {
	var result Finding
	for _, server := range servers {
		f := judge(server)
		if f.Verdict == OK && result.Verdict != "" {
			continue
		}
		if len(servers) > 1 {
			f.Found = server.Addr + ": " + f.Found
		}
		if result.Verdict == "" || result.Verdict == OK || f.Verdict == Fault && result.Verdict != Fault {
			result = f
		}
	}
	return result
}

func (c Config) redis(ctx context.Context) Finding {
	if c.Redis == nil {
		return fault("set REDIS_URL", noRedis)
	}
	if err := c.store.Ping(ctx); err != nil {
		return fault("check that Redis runs and is reachable from here, and that REDIS_URL has the right user and password. Until then callbacks are served from the cache, and no token is renewed",
			"%v", err)
	}
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	return worst(servers, func(s store.Server) Finding {
		major, _, _ := strings.Cut(s.Version, ".")
		n, err := strconv.Atoi(major)
		switch {
		case err != nil:
			return notChecked("Redis does not report its version")
		case n < 7:
			return fault("upgrade to Redis 7 or later", "Redis %s is too old", s.Version)
		}
		return ok("Redis %s, %s", s.Version, s.Mode)
	})
}

func (c Config) persistence(ctx context.Context) Finding {
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	const fix = "on the running Redis: " + store.AppendOnlyAdvice + ". Without it a restart loses every grant written since the last snapshot, and those users must consent again"
	return worst(servers, func(s store.Server) Finding {
		switch {
		case s.Version == "":
			return notChecked("Redis does not report its state")
		case s.PersistenceError != "":
			return fault("see Redis's log: usually its disk is full", "Redis cannot save: %s", s.PersistenceError)
		case !s.AppendOnly && s.SnapshotSchedule != "":
			return warning(fix, "no append-only file, only snapshots (save %s)", s.SnapshotSchedule)
		case !s.AppendOnly:
			return fault(fix, "no append-only file")
		case s.AppendFsync == "no":
			return warning("redis-cli config set appendfsync everysec, and config rewrite", "appendfsync is no: a crash of the machine loses up to 30 s of writes")
		case s.AppendFsync == "":
			return ok("append-only file; appendfsync is unknown, because CONFIG is not allowed")
		}
		return ok("append-only file, appendfsync %s", s.AppendFsync)
	})
}

func (c Config) memory(ctx context.Context) Finding {
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	return worst(servers, func(s store.Server) Finding {
		used := bytes(s.MemoryUsed)
		share := 0
		if s.MemoryMax > 0 {
			share = int(100 * s.MemoryUsed / s.MemoryMax)
			used += fmt.Sprintf(" of %s used (%d %%)", bytes(s.MemoryMax), share)
		} else {
			used += " used, no maxmemory"
		}
		switch {
		case s.Eviction == "":
			return notChecked("Redis does not report its state")
		case s.Eviction != "noeviction" && s.MemoryMax > 0:
			return fault("redis-cli config set maxmemory-policy noeviction, and config rewrite", "maxmemory-policy is %s: Redis evicts grants when it is full; %s", s.Eviction, used)
		case s.Eviction != "noeviction":
			return warning("redis-cli config set maxmemory-policy noeviction, and config rewrite", "maxmemory-policy is %s: with a maxmemory, Redis would evict grants; %s", s.Eviction, used)
		case share >= 98:
			return fault("raise maxmemory (redis-cli config set maxmemory, and config rewrite): when it is reached, no token can be renewed and no user registered", "noeviction, %s", used)
		case share >= 85:
			return warning("raise maxmemory (redis-cli config set maxmemory, and config rewrite): when it is reached, no token can be renewed and no user registered", "noeviction, %s", used)
		}
		return ok("noeviction, %s", used)
	})
}

func bytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func (c Config) replication(ctx context.Context) Finding {
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	return worst(servers, func(s store.Server) Finding {
		replicas := count(s.Replicas, "replica") + " in sync"
		switch {
		case s.Version == "":
			return notChecked("Redis does not report its state")
		case s.Replicas < c.WaitReplicas:
			return fault("restore the replicas, or lower REDIS_WAIT_REPLICAS. Until then responses from Zoom accumulate in the journals, and the loss of a disk loses grants",
				"%s, and REDIS_WAIT_REPLICAS is %d: no commit is confirmed", replicas, c.WaitReplicas)
		case s.ReplicaLag > 5*time.Second:
			return warning("see the log of the lagging replica: a failover to it loses that much", "%s, one of them %v behind", replicas, s.ReplicaLag)
		case s.Replicas == 0:
			return ok("no replica: the only copy is on Redis's disk")
		}
		return ok("%s, at most %v behind", replicas, s.ReplicaLag)
	})
}

func (c Config) permissions(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	err := c.store.CheckWritable(ctx)
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded), strings.Contains(err.Error(), "dial"), strings.Contains(err.Error(), "timeout"):
		return notChecked(redisSilent)
	case strings.Contains(err.Error(), "NOPERM"):
		return fault("grant ~tp1:* ~rate:tp1:* &tp1:* and +@all -@dangerous +info to the user of REDIS_URL", "the user of REDIS_URL may not write: %v", err)
	case strings.Contains(err.Error(), "OOM"):
		return fault("raise maxmemory: redis-cli config set maxmemory, and config rewrite", "Redis is full: %v", err)
	default:
		return fault("see Redis's log, and check that REDIS_URL names the master", "Redis rejects writes: %v", err)
	}
	if err := c.Redis.CheckPubSub(ctx); err != nil {
		return fault("grant the channels &tp1:* to the user of REDIS_URL: without them token servers serve tokens that another process has replaced",
			"changes cannot be published to other processes: %v", err)
	}
	return ok("writes and pub/sub work")
}
