package reload_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/reload"
)

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil { // else it is empty for a moment
			t.Fatal(err)
		}
	}
	load := func(read reload.Read) (string, error) {
		content, err := read(path)
		if string(content) == "bad" {
			err = errors.New("invalid")
		}
		return string(content), err
	}
	if _, err := reload.New(load); err == nil {
		t.Fatal("a missing file is no error")
	}
	write("one")
	value, err := reload.New(load)
	if err != nil || value.Get() != "one" {
		t.Fatalf("loaded %q, %v", value.Get(), err)
	}

	core, logs := observer.New(zap.InfoLevel)
	ctx, cancel := context.WithCancel(t.Context())
	ended, reloads := make(chan struct{}), make(chan string, 10)
	go func() {
		defer close(ended)
		value.Follow(ctx, time.Millisecond, zap.New(core), "thing", func(text string) { reloads <- text })
	}()
	await := func(condition func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no log entry within 10 s")
			}
		}
	}
	write("two")
	if got := <-reloads; got != "two" || value.Get() != "two" {
		t.Errorf("passed on %q, has %q", got, value.Get())
	}
	write("bad")
	await(func() bool { return logs.FilterLevelExact(zap.ErrorLevel).Len() > 0 })
	if value.Get() != "two" {
		t.Errorf("an invalid file replaced the value: %q", value.Get())
	}
	write("three")
	if got := <-reloads; got != "three" {
		t.Errorf("passed on %q", got)
	}
	cancel()
	<-ended
	if n := logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 {
		t.Errorf("one invalid change was logged %d times", n)
	}
}
