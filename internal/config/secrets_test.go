package config_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/config"
	"tokenprovider/internal/secret"
)

func TestSecretsReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	taken := make(chan string, 10)
	var secrets config.Secrets
	secrets.On("NOTHING", "", func(secret.Text) error { t.Error("no file was named"); return nil })
	secrets.On("THE_SECRET", path, func(text secret.Text) error {
		if text.Reveal() == "bad" {
			taken <- "refused"
			return errors.New("it is malformed")
		}
		taken <- text.Reveal()
		return nil
	})
	core, logs := observer.New(zap.DebugLevel)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		secrets.Follow(ctx, time.Millisecond, zap.New(core))
	}()
	for _, next := range []struct{ write, taken string }{{"two\r\n", "two"}, {"bad", "refused"}, {"three", "three"}} {
		write(next.write)
		for {
			got := <-taken
			if got == next.taken {
				break
			}
			if got != "" { // a file is empty for a moment while it is written
				t.Errorf("took %q, want %q", got, next.taken)
			}
		}
	}
	cancel()
	<-ended
	if faults := logs.FilterLevelExact(zap.ErrorLevel); faults.Len() != 1 || faults.All()[0].ContextMap()["setting"] != "THE_SECRET" {
		t.Errorf("logged: %v", faults.All())
	}
}
