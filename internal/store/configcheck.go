package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ConfigProblem is a way in which Redis, as it is set up, loses what it has
// acknowledged, or does not do what is needed of it.
type ConfigProblem struct {
	Fatal bool   // not to be used like this, but for trials
	Text  string // what is wrong, and what to do
}

// AppendOnly is how a Redis gets an append-only file. A Redis with a snapshot that is
// started with appendonly yes for the first time makes an empty file, and reads that
// (redis.io, persistence: how to switch to AOF).
const AppendOnly = "redis-cli config set appendonly yes, and config rewrite once info persistence has aof_rewrite_in_progress:0; do not restart it in between, and do not begin with redis.conf: Redis would start empty"

// CheckConfig looks at how each master of Redis is set up. What it may not ask, as
// with some managed services, it does not find.
func (s *Health) CheckConfig(ctx context.Context) ([]ConfigProblem, error) {
	masters, err := s.subscriptions(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking at how Redis is set up: %w", err)
	}
	var found []ConfigProblem
	for _, master := range masters {
		dangers, err := master.configProblems(ctx)
		if err != nil {
			return nil, fmt.Errorf("looking at how Redis is set up: %w", err)
		}
		found = append(found, dangers...)
	}
	return found, nil
}

func (n subscription) configProblems(ctx context.Context) (found []ConfigProblem, err error) {
	danger := func(fatal bool, text string) { found = append(found, ConfigProblem{fatal, text}) }

	memory, err := n.server.Info(ctx, "memory").Result()
	if policy := infoValue(memory, "maxmemory_policy"); err == nil && policy != "" && policy != "noeviction" {
		danger(true, "Redis evicts grants when its memory is full (maxmemory-policy "+policy+"): redis-cli config set maxmemory-policy noeviction, and config rewrite")
	}
	if err = ignoreReply(err); err != nil {
		return nil, err
	}

	persistence, err := n.server.Info(ctx, "persistence").Result()
	if err == nil && infoValue(persistence, "aof_enabled") == "0" {
		saves, configErr := n.server.ConfigGet(ctx, "save").Result()
		switch {
		case configErr != nil:
			danger(false, "Redis keeps no append-only file: after a crash it may have forgotten minutes; make sure that its replicas survive it, or, while it runs: "+AppendOnly)
		case saves["save"] == "":
			danger(true, "Redis keeps nothing on disk: a restart loses every grant; while it runs: "+AppendOnly)
		default:
			danger(false, "Redis writes to disk now and then only (save "+saves["save"]+"): a crash loses the grants of the minutes before; while it runs: "+AppendOnly)
		}
	}
	if err = ignoreReply(err); err != nil {
		return nil, err
	}

	// Nobody has a grant without an id: whoever hears of it has nothing to drop.
	publish := n.server.Publish
	if n.sharded {
		publish = n.server.SPublish
	}
	switch err := publish(ctx, n.channels[0], "").Err(); {
	case err == nil:
	case strings.HasPrefix(err.Error(), "NOPERM"):
		danger(true, "the Redis user may not publish: allow it the channels "+prefix+"* (ACL SETUSER … &"+prefix+"*)")
	default:
		return nil, err
	}
	return found, nil
}

// ignoreReply drops an error that Redis itself has answered: it does not know the
// question, or does not let us ask it.
func ignoreReply(err error) error {
	if _, refused := err.(redis.Error); refused { //nolint:errorlint // go-redis's own kind of answer
		return nil
	}
	return err
}
