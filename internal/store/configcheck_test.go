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

func TestDangers(t *testing.T) {
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
	look := func(url string) string {
		t.Helper()
		dangers, err := store.New(testkit.RedisClient(t, url), testkit.Keyset(t)).CheckConfig(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, d := range dangers {
			if d.Fatal {
				text.WriteString("FATAL ")
			}
			text.WriteString(d.Text + "\n")
		}
		return text.String()
	}
	for _, url := range []string{server.URL(), "redis+cluster://" + cluster.Addr, "redis://" + miniredis.RunT(t).Addr()} {
		if got := look(url); got != "" {
			t.Errorf("a Redis as it should be is in danger: %s", got)
		}
	}
	set("maxmemory-policy", "allkeys-lru")
	if got := look(server.URL()); !strings.HasPrefix(got, "FATAL Redis evicts") || !strings.Contains(got, "set maxmemory-policy noeviction") {
		t.Errorf("it evicts: %q", got)
	}
	set("maxmemory-policy", "noeviction", "appendonly", "no")
	if got := look(server.URL()); !strings.HasPrefix(got, "FATAL Redis keeps nothing on disk") {
		t.Errorf("it keeps nothing: %q", got)
	}
	set("save", "60 1000")
	if got := look(server.URL()); !strings.HasPrefix(got, "Redis writes to disk now and then only (save 60 1000)") {
		t.Errorf("it saves now and then: %q", got)
	}
	set("appendonly", "yes")
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">pw", "~tp1:*", "resetchannels", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	if got := look("redis://app:pw@" + server.Addr); !strings.HasPrefix(got, "FATAL the Redis user may not publish") {
		t.Errorf("it may not publish: %q", got)
	}
	// A user who may ask for nothing about the server is in no danger that anybody
	// knows of.
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "&tp1:*", "-config", "-info").Err(); err != nil {
		t.Fatal(err)
	}
	if got := look("redis://app:pw@" + server.Addr); got != "" {
		t.Errorf("a user who may not ask: %q", got)
	}
}

// TestKeysetMarkIsGone: without its mark, a record tells a wrong keyset.
func TestKeysetMarkIsGone(t *testing.T) {
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
