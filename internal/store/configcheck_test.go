package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

func TestCheckConfig(t *testing.T) {
	cluster := testkit.StartRedisCluster(t)
	server := testkit.StartRedis(t)
	admin := server.Client()
	set := func(pairs ...string) {
		t.Helper()
		for i := 0; i < len(pairs); i += 2 {
			if err := admin.ConfigSet(t.Context(), pairs[i], pairs[i+1]).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(url string) string {
		t.Helper()
		problems, err := store.New(testkit.RedisClient(t, url), testkit.Keyset(t)).CheckConfig(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, d := range problems {
			if d.Fatal {
				text.WriteString("FATAL ")
			}
			text.WriteString(d.Text + "\n")
		}
		return text.String()
	}
	for _, url := range []string{server.URL(), "redis+cluster://" + cluster.Addr, "redis://" + miniredis.RunT(t).Addr()} {
		if got := check(url); got != "" {
			t.Errorf("a correct configuration has problems: %s", got)
		}
	}
	set("maxmemory-policy", "allkeys-lru")
	if got := check(server.URL()); !strings.HasPrefix(got, "FATAL Redis evicts") || !strings.Contains(got, "set maxmemory-policy noeviction") {
		t.Errorf("with eviction: %q", got)
	}
	set("maxmemory-policy", "noeviction", "appendonly", "no")
	if got := check(server.URL()); !strings.HasPrefix(got, "FATAL Redis keeps nothing on disk") {
		t.Errorf("without persistence: %q", got)
	}
	set("save", "60 1000")
	if got := check(server.URL()); !strings.HasPrefix(got, "Redis writes to disk now and then only (save 60 1000)") {
		t.Errorf("with snapshots only: %q", got)
	}
	set("appendonly", "yes")
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">pw", "~tp1:*", "resetchannels", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	if got := check("redis://app:pw@" + server.Addr); !strings.HasPrefix(got, "FATAL the Redis user may not publish") {
		t.Errorf("without permission to publish: %q", got)
	}
	// A user without permission for INFO and CONFIG cannot detect a problem.
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "&tp1:*", "-config", "-info").Err(); err != nil {
		t.Fatal(err)
	}
	if got := check("redis://app:pw@" + server.Addr); got != "" {
		t.Errorf("without permission for INFO and CONFIG: %q", got)
	}
}

// TestKeysetMarkIsMissing: without its mark, a record reveals a wrong keyset.
func TestKeysetMarkIsMissing(t *testing.T) {
	server := testkit.StartRedis(t)
	right := testkit.Keyset(t)
	f := &fixture{store.New(server.Client(), right), server.Client(), t}
	f.consent("ann", future)
	wrong := store.New(server.Client(), testkit.Keyset(t))
	if err := wrong.CheckKeyset(t.Context()); !errors.Is(err, store.ErrKeyset) {
		t.Errorf("a wrong keyset: %v, want ErrKeyset", err)
	}
	if err := f.CheckKeyset(context.Background()); err != nil {
		t.Errorf("the right keyset: %v", err)
	}
	if err := wrong.CheckKeyset(t.Context()); !errors.Is(err, store.ErrKeyset) {
		t.Errorf("a wrong keyset, once there is a mark: %v, want ErrKeyset", err)
	}
}
