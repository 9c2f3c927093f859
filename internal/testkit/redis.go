// Package testkit provides fixtures for tests: a real redis-server on a free loopback
// port, keysets and metric values. Without redis-server a test fails; it is not skipped.
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
	Dir  string // of the append-only file and the log

	tb      testing.TB
	args    []string
	command *exec.Cmd
}

// StartRedis runs redis-server until the test ends. It syncs the append-only file after
// each write. args are further arguments of the server.
func StartRedis(tb testing.TB, args ...string) *Redis {
	tb.Helper()
	s := &Redis{Addr: freeAddr(tb), Dir: tb.TempDir(), tb: tb, args: args}
	s.Run()
	tb.Cleanup(s.Kill)
	return s
}

// StartRedisCluster runs a Redis Cluster of one node that has all slots. It rejects
// scripts and pipelines whose keys are in different slots.
func StartRedisCluster(tb testing.TB) *Redis {
	tb.Helper()
	s := StartRedis(tb, "--cluster-enabled", "yes")
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer func() { _ = client.Close() }()
	if err := client.ClusterAddSlotsRange(tb.Context(), 0, 16383).Err(); err != nil {
		tb.Fatalf("assigning the cluster slots: %v", err)
	}
	s.await(func(ctx context.Context) error {
		info, err := client.ClusterInfo(ctx).Result()
		if err == nil && !strings.Contains(info, "cluster_state:ok") {
			err = fmt.Errorf("cluster not ready")
		}
		return err
	})
	return s
}

// Run starts the server. After [Redis.Kill] it keeps its address and files.
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
	s.command = exec.Command(path, args...) //nolint:noctx // ended by Kill
	if err := s.command.Start(); err != nil {
		s.tb.Fatalf("starting redis-server: %v", err)
	}
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer func() { _ = client.Close() }()
	s.await(func(ctx context.Context) error { return client.Ping(ctx).Err() })
}

// Kill ends the server with SIGKILL, as a crash does. It does nothing if the server is
// not running.
func (s *Redis) Kill() {
	if s.command == nil {
		return
	}
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
	s.command = nil
}

// Freeze stops the server's process until [Redis.Thaw]. Its connections stay open.
func (s *Redis) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw resumes the server's process after [Redis.Freeze].
func (s *Redis) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Redis) signal(signal syscall.Signal) {
	s.tb.Helper()
	if err := s.command.Process.Signal(signal); err != nil {
		s.tb.Fatalf("signalling redis-server: %v", err)
	}
}

// URL returns the server's REDIS_URL.
func (s *Redis) URL() string { return "redis://" + s.Addr + "/0" }

// Client returns a client with the programs' options. It is closed when the test ends.
func (s *Redis) Client() *store.Connection {
	s.tb.Helper()
	return RedisClient(s.tb, s.URL())
}

// RedisClient returns a client for a Redis URL. It is closed when the test ends.
func RedisClient(tb testing.TB, url string) *store.Connection {
	tb.Helper()
	logging.Disable() // the logger has no levels; it would fill the output of each test
	client, err := store.Connect(secret.New(url))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Contents returns the contents of all files of the server, to search them for secrets.
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

// Save copies the server's files to a new directory while the server runs, like a disk
// snapshot.
func (s *Redis) Save() (dir string) {
	s.tb.Helper()
	dir = s.tb.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.Dir)); err != nil {
		s.tb.Fatalf("copying Redis's files: %v", err)
	}
	return dir
}

// Restore replaces the server's files with a copy made by [Redis.Save]. The server must
// not be running.
func (s *Redis) Restore(dir string) {
	s.tb.Helper()
	if err := os.RemoveAll(s.Dir); err != nil {
		s.tb.Fatalf("removing Redis's files: %v", err)
	}
	if err := os.CopyFS(s.Dir, os.DirFS(dir)); err != nil {
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

// freeAddr returns an address with a port that is free now. A cluster node also listens
// on its port + 10000, so the port is below 55000.
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
