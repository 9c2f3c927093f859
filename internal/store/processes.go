package store

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is a token server or a registrar that lives, or has lived until lately.
type Process struct {
	Name    string // host and process id
	Program string // tokenserver or registrar
	Version string
	Seen    time.Time // when it was last heard of, by Redis's clock
}

const (
	processesKey = prefix + "processes"
	attendEvery  = 5 * time.Second
	forgetAfter  = time.Hour
)

// Heartbeat tells that this process lives, until ctx ends; then, that it has ended as
// it should. Who is killed, stuck or cut off from Redis is missed in
// [Store.Processes].
func (s *Store) Heartbeat(ctx context.Context, program, version string) {
	host, _ := os.Hostname()
	field := fmt.Sprintf("%s %s/%d", program, host, os.Getpid())
	every := time.NewTicker(attendEvery)
	defer every.Stop()
	for {
		// A failure is Redis's, of which others tell.
		_ = heartbeatScript.Run(ctx, s.redis, []string{processesKey}, field, version, forgetAfter.Milliseconds()).Err()
		select {
		case <-every.C:
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = s.redis.HDel(ctx, processesKey, field).Err()
			return
		}
	}
}

// Processes returns the processes that have not ended as they should, and were
// heard of within the hour, by program and name.
func (s *Store) Processes(ctx context.Context) ([]Process, error) {
	all, err := s.redis.HGetAll(ctx, processesKey).Result()
	if err != nil {
		return nil, fmt.Errorf("reading which processes live: %w", err)
	}
	found := make([]Process, 0, len(all))
	for field, text := range all {
		program, name, _ := strings.Cut(field, " ")
		seen, version, _ := strings.Cut(text, " ")
		ms, err := strconv.ParseInt(seen, 10, 64)
		if err != nil {
			continue // another version's
		}
		found = append(found, Process{Name: name, Program: program, Version: version, Seen: time.UnixMilli(ms)})
	}
	slices.SortFunc(found, func(a, b Process) int {
		return cmp.Or(strings.Compare(a.Program, b.Program), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}
