package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// BenchmarkIdle measures the CPU and the Redis commands that an idle token server with
// 100,000 grants uses.
func BenchmarkIdle(b *testing.B) {
	const grants, watch = 100_000, time.Minute
	redis := testkit.StartRedis(b, "--appendfsync", "no")
	json, keyset := testkit.KeysetJSON(b)
	file := b.TempDir() + "/keyset.json"
	if err := os.WriteFile(file, json, 0o600); err != nil {
		b.Fatal(err)
	}
	client := redis.Client()
	fill(b, store.New(client, keyset), grants, time.Hour)
	p := launch(b, "tokenserver", []string{
		"REDIS_URL=" + redis.URL(), "KEYSET_FILE=" + file, "ZOOM_CLIENT_ID=x", "ZOOM_CLIENT_SECRET=x",
		"HTTP_ADDR=127.0.0.1:0", "OPS_ADDR=127.0.0.1:0",
	})
	p.await("token server started")
	time.Sleep(20 * time.Second) // the first scan of every shard, and the pause after Redis has started
	for b.Loop() {
		cpu, commands := cpuTime(b, p.command.Process.Pid), redisCommands(b, client)
		time.Sleep(watch)
		cpu, commands = cpuTime(b, p.command.Process.Pid)-cpu, redisCommands(b, client)-commands
		b.ReportMetric(100*cpu.Seconds()/watch.Seconds(), "%-of-a-core")
		b.ReportMetric(float64(commands)/watch.Seconds(), "redis-commands/s")
	}
}

// fill stores grants with tokens of the length of Zoom's, and returns the paths of their
// callback URLs.
func fill(b testing.TB, grants *store.Store, n int, due time.Duration) []string {
	b.Helper()
	paths := make([]string, n)
	work := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range work {
				user, now := fmt.Sprint("user-", i), time.Now()
				token := secret.New(strings.Repeat("x", 800) + user)
				address := callback.NewAddress(grant.NewID("default", user))
				paths[i] = callback.Prefix + string(address.ID) + "/" + address.Secret.Reveal()
				_, err := grants.AcceptConsent(context.Background(), address.ID, grant.Consent{
					App: "default", User: user,
					Tokens: grant.Tokens{Access: token, Refresh: token, Issued: now, Expires: now.Add(due + time.Hour)},
				}, now.Add(due))
				if err == nil {
					_, err = grants.Change(context.Background(), address.ID, 1, store.Change{Secrets: &[]grant.CallbackSecret{address.CallbackSecret()}})
				}
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	return paths
}

// cpuTime returns the CPU time that a process has used (proc(5), stat).
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// redisCommands returns the number of commands that Redis has processed.
func redisCommands(b *testing.B, client *store.Connection) int {
	b.Helper()
	info, err := client.Info(b.Context(), "stats").Result()
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "total_commands_processed:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	if err != nil {
		b.Fatal(err)
	}
	return n
}
