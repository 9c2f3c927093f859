package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ConfigProblem is a setting of Redis that loses acknowledged writes, or that denies
// a required operation.
type ConfigProblem struct {
	Fatal bool   // acceptable for trials only
	Text  string // the problem and its fix
}

// AppendOnlyAdvice describes how to enable the append-only file of a running Redis. A
// restart with appendonly yes does not import the snapshot: Redis creates an empty
// append-only file and starts empty (redis.io, persistence: how to switch to AOF).
const AppendOnlyAdvice = "redis-cli config set appendonly yes, and config rewrite once info persistence has aof_rewrite_in_progress:0; do not restart it in between, and do not begin with redis.conf: Redis would start empty"

// CheckConfig returns the problems of each master's configuration. It cannot detect
// those behind a command that Redis denies, as some managed services do.
func (s *Health) CheckConfig(ctx context.Context) ([]ConfigProblem, error) {
	masters, err := s.subscriptions(ctx)
	if err != nil {
		return nil, fmt.Errorf("checking the configuration of Redis: %w", err)
	}
	var found []ConfigProblem
	for _, master := range masters {
		problems, err := master.configProblems(ctx)
		if err != nil {
			return nil, fmt.Errorf("checking the configuration of Redis: %w", err)
		}
		found = append(found, problems...)
	}
	return found, nil
}

func (n subscription) configProblems(ctx context.Context) (found []ConfigProblem, err error) {
	report := func(fatal bool, text string) { found = append(found, ConfigProblem{fatal, text}) }

	memory, err := n.server.Info(ctx, "memory").Result()
	if policy := infoValue(memory, "maxmemory_policy"); err == nil && policy != "" && policy != "noeviction" {
		report(true, "Redis evicts grants when its memory is full (maxmemory-policy "+policy+"): redis-cli config set maxmemory-policy noeviction, and config rewrite")
	}
	if err = ignoreReply(err); err != nil {
		return nil, err
	}

	persistence, err := n.server.Info(ctx, "persistence").Result()
	if err == nil && infoValue(persistence, "aof_enabled") == "0" {
		saves, configErr := n.server.ConfigGet(ctx, "save").Result()
		switch {
		case configErr != nil:
			report(false, "Redis keeps no append-only file: after a crash it may lose the writes of minutes, unless a replica survives; while it runs: "+AppendOnlyAdvice)
		case saves["save"] == "":
			report(true, "Redis keeps nothing on disk: a restart loses every grant; while it runs: "+AppendOnlyAdvice)
		default:
			report(false, "Redis writes to disk now and then only (save "+saves["save"]+"): a crash loses the grants of the minutes before; while it runs: "+AppendOnlyAdvice)
		}
	}
	if err = ignoreReply(err); err != nil {
		return nil, err
	}

	// An empty id is of no grant: subscribers ignore the message.
	publish := n.server.Publish
	if n.sharded {
		publish = n.server.SPublish
	}
	switch err := publish(ctx, n.channels[0], "").Err(); {
	case err == nil:
	case strings.HasPrefix(err.Error(), "NOPERM"):
		report(true, "the Redis user may not publish: allow it the channels "+prefix+"* (ACL SETUSER … &"+prefix+"*)")
	default:
		return nil, err
	}
	return found, nil
}

// ignoreReply returns nil for an error reply of Redis: the command is unknown or
// denied.
func ignoreReply(err error) error {
	if _, refused := err.(redis.Error); refused { //nolint:errorlint // the type of error replies
		return nil
	}
	return err
}
