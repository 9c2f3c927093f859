package keyset_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// file is a keyset's file.
type file struct {
	t    *testing.T
	path string
	json []byte
}

func newFile(t *testing.T) *file {
	t.Helper()
	json, _ := testkit.KeysetJSON(t)
	f := &file{t, filepath.Join(t.TempDir(), "keyset.json"), nil}
	f.write(json)
	return f
}

// write replaces the file as a whole.
func (f *file) write(json []byte) {
	f.t.Helper()
	f.json = json
	if err := os.WriteFile(f.path+".new", json, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *file) add() uint32 {
	f.t.Helper()
	json, id, err := seal.Wrapping{}.AddKey(f.json)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(json)
	return id
}

func (f *file) promote(id uint32) {
	f.t.Helper()
	json, err := seal.Wrapping{}.Promote(f.json, id)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(json)
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// running runs something until the test ends.
func running(t *testing.T, run func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func TestKeysetReload(t *testing.T) {
	f := newFile(t)
	opened, err := keyset.Open(t.Context(), f.path, "")
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	running(t, func(ctx context.Context) { opened.Follow(ctx, time.Millisecond, zap.New(core)) })
	keys := opened.Keyset()
	first := keys.Primary()

	id := f.add()
	until(t, "the new key is known", func() bool { return len(keys.Keys()) == 2 })
	if keys.Primary() != first {
		t.Error("the new key encrypts already")
	}
	f.promote(id)
	until(t, "the new key encrypts", func() bool { return keys.Primary() == id })

	// Another keyset would make everything that is stored unreadable.
	other, _ := testkit.KeysetJSON(t)
	for _, invalid := range [][]byte{other, []byte("hunter2"), {}} {
		good := f.json
		logs.TakeAll()
		f.write(invalid)
		until(t, "the error is logged", func() bool { return logs.FilterLevelExact(zap.ErrorLevel).Len() > 0 })
		if keys.Primary() != id {
			t.Error("an invalid keyset was applied")
		}
		if entry := logs.FilterLevelExact(zap.ErrorLevel).All()[0]; strings.Contains(entry.Message, "hunter2") {
			t.Error("the keyset is quoted")
		}
		f.write(good)
		until(t, "the good one is read again", func() bool { return logs.FilterMessage("keyset reloaded").Len() > 0 })
	}
}

func TestOpenRefuses(t *testing.T) {
	f := newFile(t)
	for name, open := range map[string]func() (*keyset.File, error){
		"no file":       func() (*keyset.File, error) { return keyset.Open(t.Context(), f.path+"x", "") },
		"not a KMS key": func() (*keyset.File, error) { return keyset.Open(t.Context(), f.path, "https://kms") },
		"not a keyset": func() (*keyset.File, error) {
			f.write([]byte("hunter2"))
			return keyset.Open(t.Context(), f.path, "")
		},
	} {
		if _, err := open(); err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), f.path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReencryptionWithThePromotedKey(t *testing.T) {
	f := newFile(t)
	opened, err := keyset.Open(t.Context(), f.path, "")
	if err != nil {
		t.Fatal(err)
	}
	server := testkit.StartRedis(t)
	stored := store.New(server.Client(), opened.Keyset())
	now := time.Now()
	token := secret.New("token")
	for _, user := range []string{"ann", "bob", "cid"} {
		if _, err := stored.AcceptConsent(t.Context(), grant.NewID("default", user), grant.Consent{
			App: "default", User: user, Fingerprint: user,
			Tokens: grant.Tokens{Access: token, Refresh: token, Issued: now, Expires: now.Add(time.Hour)},
		}, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	running(t, func(ctx context.Context) { opened.Follow(ctx, time.Millisecond, zap.NewNop()) })
	core, logs := observer.New(zap.InfoLevel)
	for range 2 { // replicas: one of them works
		r := &keyset.Reencrypter{Store: stored, Keyset: opened.Keyset(), Log: zap.New(core), Wait: 40 * time.Millisecond}
		running(t, r.Run)
	}
	first := opened.Keyset().Primary()
	until(t, "the first key is noted", func() bool {
		id, err := stored.ReencryptedBy(t.Context())
		return err == nil && id == first
	})
	id := f.add()
	f.promote(id)
	until(t, "the promoted key is noted", func() bool {
		resealed, err := stored.ReencryptedBy(t.Context())
		return err == nil && resealed == id
	})
	if counts, err := stored.CountByKey(t.Context()); err != nil || len(counts) != 1 || counts[id] != 3 {
		t.Errorf("encrypted by %v, %v, want 3 by %d", counts, err, id)
	}
	if n := logs.FilterMessage("re-encryption complete").Len(); n != 2 {
		t.Errorf("logged %d times, want once for each key", n)
	}
}

// reloading reloads a file every second, on virtual time. step waits for ten
// reloads and compares the number of log lines since the last step.
func reloading(t *testing.T, f *file, kmsURI string, test func(keys *seal.Keyset, step func(name string, infos, errors int))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		opened, err := keyset.Open(t.Context(), f.path, kmsURI)
		if err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			opened.Follow(ctx, time.Second, zap.New(core))
		}()
		test(opened.Keyset(), func(name string, infos, errors int) {
			t.Helper()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if i, e := logs.FilterLevelExact(zap.InfoLevel).Len(), logs.FilterLevelExact(zap.ErrorLevel).Len(); i != infos || e != errors {
				t.Errorf("%s: %d infos and %d errors, want %d and %d", name, i, e, infos, errors)
			}
			logs.TakeAll()
		})
		cancel()
		<-ended
	})
}

// TestAFaultyFileIsLoggedOnce: each change is logged once, however often the file
// is reloaded.
func TestAFaultyFileIsLoggedOnce(t *testing.T) {
	f := newFile(t)
	good := f.json
	reloading(t, f, "", func(_ *seal.Keyset, step func(name string, infos, errors int)) {
		step("nothing has changed", 0, 0)
		f.write([]byte("hunter2"))
		step("not a keyset", 0, 1)
		f.write([]byte("hunter3"))
		step("not a keyset again", 0, 1)
		f.write(good)
		step("a keyset", 1, 0)
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		step("no file", 0, 1)
		f.write(append([]byte("\n"), good...))
		step("a file again", 1, 0)
	})
}
