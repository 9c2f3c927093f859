package keyset_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
)

// kms is a service with one key, which wraps by inverting the bits. It records how
// much time each call had.
type kms struct {
	down atomic.Bool
	had  []time.Duration
}

func (k *kms) invert(ctx context.Context, data []byte) ([]byte, error) {
	deadline, limited := ctx.Deadline()
	if limited {
		k.had = append(k.had, time.Until(deadline))
	}
	if k.down.Load() {
		return nil, errors.New("the KMS is down")
	}
	inverted := make([]byte, len(data))
	for i := range data {
		inverted[i] = ^data[i]
	}
	return inverted, nil
}

func (k *kms) EncryptWithContext(ctx context.Context, plain, _ []byte) ([]byte, error) {
	return k.invert(ctx, plain)
}

func (k *kms) DecryptWithContext(ctx context.Context, encrypted, _ []byte) ([]byte, error) {
	return k.invert(ctx, encrypted)
}

var registered = &kms{}

func init() {
	keyset.RegisterKMS("test-kms", keyset.KMS{Example: "test-kms://KEY", Open: func(_ context.Context, uri string) (tink.AEAD, error) {
		if uri != "test-kms://key" {
			return nil, errors.New("unknown key")
		}
		return keyset.LimitTime(registered), nil
	}})
}

func TestKMSByScheme(t *testing.T) {
	wrapping, err := keyset.Wrapping(t.Context(), "test-kms://key")
	if err != nil {
		t.Fatal(err)
	}
	registered.had = nil
	wrapped, err := wrapping.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrapping.Parse(wrapped); err != nil {
		t.Fatal(err)
	}
	if had := registered.had; len(had) != 2 || min(had[0], had[1]) < 9*time.Second || max(had[0], had[1]) > 10*time.Second {
		t.Errorf("the calls had %v, want 10 s each", had)
	}
	for _, uri := range []string{"", "keyset", "test-kms://", "https://example.com"} {
		if _, err := keyset.OpenKMS(t.Context(), uri); err == nil || !strings.Contains(err.Error(), "test-kms://KEY") {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if _, err := keyset.OpenKMS(t.Context(), "test-kms://another"); err == nil {
		t.Error("the error of the service is lost")
	}
	defer func() {
		if recover() == nil {
			t.Error("a scheme was registered twice")
		}
	}()
	keyset.RegisterKMS("test-kms", keyset.KMS{})
}

// TestReloadWaitsForTheKMS: a keyset that cannot be unwrapped now is tried again.
func TestReloadWaitsForTheKMS(t *testing.T) {
	wrapping := seal.Wrapping{KMS: keyset.LimitTime(registered)}
	f := newFile(t)
	wrapped, err := seal.Wrapping{}.Rewrap(f.json, wrapping)
	if err != nil {
		t.Fatal(err)
	}
	f.write(wrapped)
	reloading(t, f, "test-kms://key", func(keys *seal.Keyset, step func(name string, infos, errors int)) {
		more, _, err := wrapping.AddKey(wrapped)
		if err != nil {
			t.Fatal(err)
		}
		registered.down.Store(true)
		f.write(more)
		step("the KMS is down", 0, 1)
		registered.down.Store(false)
		if step("the KMS is back", 1, 0); len(keys.Keys()) != 2 {
			t.Errorf("%d keys", len(keys.Keys()))
		}
	})
}
