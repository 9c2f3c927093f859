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

const noRedis = "REDIS_URL is not set, or of no use"

// servers asks every master, and says what a check that needs them comes to if
// they do not answer.
func (c Config) servers(ctx context.Context) ([]store.Server, *Finding) {
	if c.Redis == nil {
		f := notChecked(noRedis)
		return nil, &f
	}
	servers, err := c.Redis.Servers(ctx)
	switch {
	case err != nil && strings.Contains(err.Error(), "NOPERM"):
		f := warning("give the user of REDIS_URL +info: the programs notice by it that Redis has restarted",
			"Redis does not let its user ask for its state (INFO)")
		return nil, &f
	case err != nil:
		f := notChecked("Redis does not answer")
		return nil, &f
	}
	return servers, nil
}

// each makes one finding of what is wrong with any master.
func each(servers []store.Server, judge func(store.Server) Finding) Finding {
	var worst Finding
	for _, server := range servers {
		f := judge(server)
		if f.Verdict == OK && worst.Verdict != "" {
			continue
		}
		if len(servers) > 1 {
			f.Found = server.Addr + ": " + f.Found
		}
		if worst.Verdict == "" || worst.Verdict == OK || f.Verdict == Fault && worst.Verdict != Fault {
			worst = f
		}
	}
	return worst
}

func (c Config) redis(ctx context.Context) Finding {
	if c.Redis == nil {
		return fault("set REDIS_URL", noRedis)
	}
	if err := c.store.Ping(ctx); err != nil {
		return fault("see that Redis runs and can be reached from here, and that user and password in REDIS_URL are right; until then callbacks are served from memory, and nothing is renewed",
			"%v", err)
	}
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	return each(servers, func(s store.Server) Finding {
		major, _, _ := strings.Cut(s.Version, ".")
		n, err := strconv.Atoi(major)
		switch {
		case err != nil:
			return notChecked("it answers, and does not say its version")
		case n < 7:
			return fault("upgrade to Redis 7 or newer", "Redis %s is too old", s.Version)
		}
		return ok("Redis %s, %s", s.Version, s.Mode)
	})
}

func (c Config) persistence(ctx context.Context) Finding {
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	const mend = "on the running Redis: " + store.AppendOnly + ". Without it a restart loses every grant since the last snapshot, and with it users, as old refresh tokens are spent"
	return each(servers, func(s store.Server) Finding {
		switch {
		case s.Version == "":
			return notChecked("Redis does not say")
		case s.Broken != "":
			return fault("look at Redis's own log: most often its disk is full", "Redis cannot save: %s", s.Broken)
		case !s.AppendOnly && s.Saves != "":
			return warning(mend, "there is no append-only file, only snapshots now and then (save %s)", s.Saves)
		case !s.AppendOnly:
			return fault(mend, "there is no append-only file")
		case s.AppendFsync == "no":
			return warning("redis-cli config set appendfsync everysec, and config rewrite", "appendfsync is no: a crash of the machine loses up to half a minute")
		case s.AppendFsync == "":
			return ok("append-only file; how often it is synced cannot be seen (CONFIG is not allowed)")
		}
		return ok("append-only file, appendfsync %s", s.AppendFsync)
	})
}

func (c Config) memory(ctx context.Context) Finding {
	servers, f := c.servers(ctx)
	if f != nil {
		return *f
	}
	return each(servers, func(s store.Server) Finding {
		used := bytes(s.MemoryUsed)
		share := 0
		if s.MemoryMax > 0 {
			share = int(100 * s.MemoryUsed / s.MemoryMax)
			used += fmt.Sprintf(" of %s used (%d %%)", bytes(s.MemoryMax), share)
		} else {
			used += " used, no bound"
		}
		switch {
		case s.Eviction == "":
			return notChecked("Redis does not say")
		case s.Eviction != "noeviction" && s.MemoryMax > 0:
			return fault("redis-cli config set maxmemory-policy noeviction, and config rewrite", "maxmemory-policy is %s: Redis throws grants away when it is full; %s", s.Eviction, used)
		case s.Eviction != "noeviction":
			return warning("redis-cli config set maxmemory-policy noeviction, and config rewrite", "maxmemory-policy is %s: with a maxmemory, Redis would throw grants away; %s", s.Eviction, used)
		case share >= 98:
			return fault("raise maxmemory (redis-cli config set maxmemory, and config rewrite): when it is reached nothing can be renewed or registered", "noeviction, %s", used)
		case share >= 85:
			return warning("raise maxmemory (redis-cli config set maxmemory, and config rewrite): when it is reached nothing can be renewed or registered", "noeviction, %s", used)
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
	return each(servers, func(s store.Server) Finding {
		replicas := count(s.Replicas, "replica") + " in step"
		switch {
		case s.Version == "":
			return notChecked("Redis does not say")
		case s.Replicas < c.WaitReplicas:
			return fault("bring the replicas back, or lower REDIS_WAIT_REPLICAS: until then answers of Zoom's pile up in the journals, and a lost disk loses users",
				"%s, and REDIS_WAIT_REPLICAS is %d: no commit counts as safe", replicas, c.WaitReplicas)
		case s.Behind > 5*time.Second:
			return warning("look at the replica that lags: it would forget as much if it took over", "%s, one of them %v behind", replicas, s.Behind)
		case s.Replicas == 0:
			return ok("no replica: what Redis's disk loses is lost")
		}
		return ok("%s, at most %v behind", replicas, s.Behind)
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
		return notChecked("Redis does not answer")
	case strings.Contains(err.Error(), "NOPERM"):
		return fault("give the user of REDIS_URL ~tp1:* ~rate:tp1:* &tp1:* and +@all -@dangerous +info", "Redis does not let its user write: %v", err)
	case strings.Contains(err.Error(), "OOM"):
		return fault("raise maxmemory: redis-cli config set maxmemory, and config rewrite", "Redis is full: %v", err)
	default:
		return fault("see Redis's own log; is REDIS_URL that of the master?", "Redis cannot be written: %v", err)
	}
	if err := c.Redis.CheckPubSub(ctx); err != nil {
		return fault("give the user of REDIS_URL the channels &tp1:* : without them token servers serve tokens that others have renewed",
			"what one process tells, others do not hear: %v", err)
	}
	return ok("it can be written, and changes are heard")
}
