package store_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// keys is a keyset whose keys a test replaces.
type keys struct {
	t      *testing.T
	json   []byte
	keyset *seal.Keyset
}

func newKeys(t *testing.T) *keys {
	t.Helper()
	json, keyset := testkit.KeysetJSON(t)
	return &keys{t, json, keyset}
}

func (k *keys) change(change func(json []byte) ([]byte, error)) {
	k.t.Helper()
	json, err := change(k.json)
	if err != nil {
		k.t.Fatal(err)
	}
	next, err := seal.Parse(json)
	if err != nil {
		k.t.Fatal(err)
	}
	k.json = json
	k.keyset.Replace(next)
}

// rotate adds a key, promotes it, and returns the previous primary key.
func (k *keys) rotate() (old uint32) {
	k.t.Helper()
	old = k.keyset.Primary()
	k.change(func(json []byte) ([]byte, error) {
		json, id, err := seal.Wrapping{}.AddKey(json)
		if err != nil {
			return nil, err
		}
		return seal.Wrapping{}.Promote(json, id)
	})
	return old
}

func TestReencrypt(t *testing.T) {
	for name, connect := range map[string]func(*testing.T) *store.Connection{
		"server": func(t *testing.T) *store.Connection { return testkit.StartRedis(t).Client() },
		"cluster": func(t *testing.T) *store.Connection {
			return testkit.RedisClient(t, "redis+cluster://"+testkit.StartRedisCluster(t).Addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testReencrypt(t, connect(t))
		})
	}
}

func testReencrypt(t *testing.T, client *store.Connection) {
	k := newKeys(t)
	s := store.New(client, k.keyset)
	f := &fixture{s, client, t}
	if err := s.CheckKeyset(t.Context()); err != nil {
		t.Fatal(err)
	}
	const n = 250 // several pages, some in every shard
	var addresses []callback.Address
	for i := range n {
		g := f.consent(fmt.Sprint("user-", i), past)
		address := callback.NewAddress(g.ID)
		if _, err := s.Change(t.Context(), g.ID, g.Version, store.Change{Secrets: &[]grant.CallbackSecret{address.CallbackSecret()}}); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, address)
	}
	old := k.rotate()
	wantKeys := func(want map[uint32]int) {
		t.Helper()
		got, err := s.CountByKey(t.Context())
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("encrypted by %v, %v, want %v", got, err, want)
		}
	}
	wantKeys(map[uint32]int{old: n})

	// A renewal before the re-encryption uses the new key.
	renewed := addresses[0].ID
	claim := f.claimDue(renewed, "a")
	if _, err := s.Commit(t.Context(), renewed, claim.Spent, tokens(1), future); err != nil {
		t.Fatal(err)
	}
	version := f.get(addresses[1].ID).Version
	last := store.ReencryptProgress{}
	done, err := s.Reencrypt(t.Context(), 0, func(p store.ReencryptProgress) { last = p })
	if err != nil || done != (store.ReencryptProgress{Scanned: n, Reencrypted: n}) || last != done {
		t.Errorf("re-encrypted %+v, last progress %+v, %v", done, last, err)
	}
	wantKeys(map[uint32]int{k.keyset.Primary(): n})
	if again, err := s.Reencrypt(t.Context(), 0, nil); err != nil || again.Reencrypted != 0 {
		t.Errorf("re-encrypted twice: %+v, %v", again, err)
	}
	if f.get(addresses[1].ID).Version != version {
		t.Error("re-encryption changed the version")
	}

	k.change(func(json []byte) ([]byte, error) { return seal.Wrapping{}.Disable(json, old) })
	for i, address := range addresses {
		serving, err := s.ReadServingRecord(t.Context(), address.ID)
		if err != nil || !address.Matches(serving.Secrets, time.Now()) {
			t.Fatalf("grant %d: %v", i, err)
		}
		want := "plain-access-0"
		if address.ID == renewed {
			want = "plain-access-1"
		}
		if serving.Access.Reveal() != want {
			t.Errorf("grant %d has another token", i)
		}
	}
	if claim := f.claimDue(addresses[1].ID, "b"); claim.Spent != fingerprint(0) || !claim.Refresh.Equal(tokens(0).Refresh) {
		t.Error("the refresh token has changed")
	}
	if err := s.CheckKeyset(t.Context()); err != nil {
		t.Errorf("the keyset's mark: %v", err)
	}
}

func TestReencryptSkipsUndecryptableValues(t *testing.T) {
	k := newKeys(t)
	s := store.New(testkit.StartRedis(t).Client(), k.keyset)
	f := &fixture{s, nil, t}
	f.consent("ann", future)
	old := k.rotate()
	k.change(func(json []byte) ([]byte, error) { return seal.Wrapping{}.Disable(json, old) }) // too early
	done, err := s.Reencrypt(t.Context(), 0, nil)
	if err != nil || done.Undecryptable != 1 || done.Reencrypted != 0 {
		t.Errorf("re-encrypted %+v, %v, want one undecryptable grant", done, err)
	}
	k.change(func(json []byte) ([]byte, error) { return seal.Wrapping{}.Enable(json, old) })
	if done, err := s.Reencrypt(t.Context(), 0, nil); err != nil || done.Reencrypted != 1 {
		t.Errorf("with the key enabled again: re-encrypted %+v, %v", done, err)
	}
}

// TestPasswordIsReplaced changes the password of Redis, then the URL.
func TestPasswordIsReplaced(t *testing.T) {
	server := testkit.StartRedis(t)
	admin := server.Client()
	password := func(text string) {
		t.Helper()
		if err := admin.ConfigSet(t.Context(), "requirepass", text).Err(); err != nil {
			t.Fatal(err)
		}
	}
	password("first")
	client := testkit.RedisClient(t, "redis://:first@"+server.Addr+"/0")
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.SetURL(secret.New("redis://:second@" + server.Addr + "/1")); err == nil {
		t.Error("another database was accepted")
	}
	password("second")
	if err := client.SetURL(secret.New("redis://:second@" + server.Addr + "/0")); err != nil {
		t.Fatal(err)
	}
	// Close every connection: the next one needs the new password.
	if err := admin.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}
