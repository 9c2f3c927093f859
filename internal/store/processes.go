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

// Process is a token server or a registrar with a recent heartbeat.
type Process struct {
	Name          string // host and process id
	Program       string // tokenserver or registrar
	Version       string
	LastHeartbeat time.Time // last heartbeat, by Redis's clock
}

const (
	processesKey      = prefix + "processes"
	heartbeatInterval = 5 * time.Second
	heartbeatMaxAge   = time.Hour
)

// RunHeartbeat records every 5 s that this process is running, until ctx ends. Then it
// deletes the entry. A killed or stuck process leaves an old one.
func (s *Health) RunHeartbeat(ctx context.Context, program, version string) {
	host, _ := os.Hostname()
	field := fmt.Sprintf("%s %s/%d", program, host, os.Getpid())
	every := time.NewTicker(heartbeatInterval)
	defer every.Stop()
	for {
		// Other parts report failures of Redis.
		_ = heartbeatScript.Run(ctx, s.redis, []string{processesKey}, field, version, heartbeatMaxAge.Milliseconds()).Err()
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

// Processes returns the processes with a heartbeat within the last hour that have not
// stopped orderly, by program and name.
func (s *Health) Processes(ctx context.Context) ([]Process, error) {
	all, err := s.redis.HGetAll(ctx, processesKey).Result()
	if err != nil {
		return nil, fmt.Errorf("reading processes: %w", err)
	}
	found := make([]Process, 0, len(all))
	for field, text := range all {
		program, name, _ := strings.Cut(field, " ")
		seen, version, _ := strings.Cut(text, " ")
		ms, err := strconv.ParseInt(seen, 10, 64)
		if err != nil {
			continue // written by another version
		}
		found = append(found, Process{Name: name, Program: program, Version: version, LastHeartbeat: time.UnixMilli(ms)})
	}
	slices.SortFunc(found, func(a, b Process) int {
		return cmp.Or(strings.Compare(a.Program, b.Program), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}
