// Package testkit has what many tests share: a real redis-server on a free loopback
// port, keysets, and readers of metrics. A machine without redis-server fails the test;
// it never skips it.
package testkit

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
)

// Redis is a running redis-server.
type Redis struct {
	Addr string // host:port
	Dir  string // where it keeps its files

	tb      testing.TB
	args    []string
	command *exec.Cmd
}

// StartRedis runs redis-server with an append-only file that is synced at every
// write, and with args besides, until the test ends.
func StartRedis(tb testing.TB, args ...string) *Redis {
	tb.Helper()
	s := &Redis{Addr: freeAddr(tb), Dir: tb.TempDir(), tb: tb, args: args}
	s.Run()
	tb.Cleanup(s.Kill)
	return s
}

// StartRedisCluster runs a Redis Cluster of one node that holds all slots: enough to
// find a script or a pipeline whose keys do not share a slot.
func StartRedisCluster(tb testing.TB) *Redis {
	tb.Helper()
	s := StartRedis(tb, "--cluster-enabled", "yes")
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer func() { _ = client.Close() }()
	if err := client.ClusterAddSlotsRange(tb.Context(), 0, 16383).Err(); err != nil {
		tb.Fatalf("giving the node its slots: %v", err)
	}
	s.await(func(ctx context.Context) error {
		info, err := client.ClusterInfo(ctx).Result()
		if err == nil && !strings.Contains(info, "cluster_state:ok") {
			err = fmt.Errorf("cluster is not ready")
		}
		return err
	})
	return s
}

// Run starts the server, again after [Redis.Kill], with the files it had.
func (s *Redis) Run() {
	s.tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		s.tb.Fatal("redis-server is not installed; on Debian: apt-get install redis-server")
	}
	_, port, _ := net.SplitHostPort(s.Addr)
	args := append([]string{
		"--port", port, "--bind", "127.0.0.1", "--dir", s.Dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--logfile", filepath.Join(s.Dir, "log"),
	}, s.args...)
	s.command = exec.Command(path, args...) //nolint:noctx // a test's own server, ended by Kill
	if err := s.command.Start(); err != nil {
		s.tb.Fatalf("starting redis-server: %v", err)
	}
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer func() { _ = client.Close() }()
	s.await(func(ctx context.Context) error { return client.Ping(ctx).Err() })
}

// Kill ends the server at once, as a crash would.
func (s *Redis) Kill() {
	if s.command == nil {
		return
	}
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
	s.command = nil
}

// Freeze stops the server without ending it or a connection, until
// [Redis.Thaw].
func (s *Redis) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw ends [Redis.Freeze].
func (s *Redis) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Redis) signal(signal syscall.Signal) {
	s.tb.Helper()
	if err := s.command.Process.Signal(signal); err != nil {
		s.tb.Fatalf("signalling redis-server: %v", err)
	}
}

// URL returns the server's REDIS_URL.
func (s *Redis) URL() string { return "redis://" + s.Addr + "/0" }

// RedisClient returns a client as the programs make it, closed with the test.
func (s *Redis) Client() *store.Connection {
	s.tb.Helper()
	return RedisClient(s.tb, s.URL())
}

// RedisClient returns a client for a Redis URL, closed with the test.
func RedisClient(tb testing.TB, url string) *store.Connection {
	tb.Helper()
	logging.Disable() // it has no level, and would be in every test's output
	client, err := store.Connect(secret.New(url))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Contents returns all that the server keeps on disk, to search it for what
// should not be there.
func (s *Redis) Contents() []byte {
	s.tb.Helper()
	var all []byte
	err := filepath.WalkDir(s.Dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all = append(all, data...)
		return err
	})
	if err != nil {
		s.tb.Fatalf("reading Redis's files: %v", err)
	}
	return all
}

// Save returns a copy of the server's files as they are now, without stopping
// it: what a disk that is restored would have.
func (s *Redis) Save() (folder string) {
	s.tb.Helper()
	folder = s.tb.TempDir()
	if err := os.CopyFS(folder, os.DirFS(s.Dir)); err != nil {
		s.tb.Fatalf("copying Redis's files: %v", err)
	}
	return folder
}

// Restore puts files back that [Redis.Save] has copied. The server must be
// down.
func (s *Redis) Restore(folder string) {
	s.tb.Helper()
	if err := os.RemoveAll(s.Dir); err != nil {
		s.tb.Fatalf("removing Redis's files: %v", err)
	}
	if err := os.CopyFS(s.Dir, os.DirFS(folder)); err != nil {
		s.tb.Fatalf("restoring Redis's files: %v", err)
	}
}

func (s *Redis) await(ready func(context.Context) error) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.tb.Fatalf("redis-server did not become ready: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// freeAddr lets the kernel choose a port that is free now. A cluster node also
// listens on its port + 10000, so high ones are passed over.
func freeAddr(tb testing.TB) string {
	tb.Helper()
	for {
		listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
		if err != nil {
			tb.Fatalf("finding a free port: %v", err)
		}
		addr := listener.Addr().(*net.TCPAddr)
		_ = listener.Close()
		if addr.Port < 55000 {
			return addr.String()
		}
	}
}
