package seal_test

import (
	"errors"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"tokenprovider/internal/seal"
)

func TestKeyReplacement(t *testing.T) {
	clear := seal.Wrapping{}
	json, err := clear.Generate()
	if err != nil {
		t.Fatal(err)
	}
	parse := func(json []byte) *seal.Keyset {
		t.Helper()
		keys, err := clear.Parse(json)
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	encrypt := func(k *seal.Keyset) []byte {
		t.Helper()
		sealed, err := k.Encrypt([]byte("secret"), "record", "field")
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	decrypts := func(k *seal.Keyset, sealed []byte) bool {
		plain, err := k.Decrypt(sealed, "record", "field")
		if err != nil && !errors.Is(err, seal.ErrDecrypt) {
			t.Errorf("decrypting: %v", err)
		}
		return err == nil && string(plain) == "secret"
	}
	first := parse(json)
	old := first.Primary()
	before := encrypt(first)

	json, added, err := clear.AddKey(json)
	if err != nil {
		t.Fatal(err)
	}
	both := parse(json)
	if both.Primary() != old || len(both.Keys()) != 2 || seal.KeyID(encrypt(both)) != old {
		t.Errorf("an added key encrypts before its promotion: %+v", both.Keys())
	}
	if json, err = clear.Promote(json, added); err != nil {
		t.Fatal(err)
	}
	promoted := parse(json)
	after := encrypt(promoted)
	if promoted.Primary() != added || seal.KeyID(after) != added || seal.KeyID(before) != old {
		t.Errorf("encrypted by key %d, want %d", seal.KeyID(after), added)
	}
	if !decrypts(promoted, before) || !decrypts(both, after) || decrypts(first, after) {
		t.Error("a keyset with both keys must decrypt both values, one without the new key only the old value")
	}
	first.Replace(promoted)
	if !decrypts(first, after) || first.Primary() != added {
		t.Error("Replace had no effect")
	}

	if _, err := clear.Disable(json, added); err == nil {
		t.Error("the primary key was disabled")
	}
	if json, err = clear.Disable(json, old); err != nil {
		t.Fatal(err)
	}
	last := parse(json)
	if decrypts(last, before) || !decrypts(last, after) {
		t.Error("a disabled key must not decrypt, the other must")
	}
	for _, key := range last.Keys() {
		if key.Enabled != (key.ID == added) || key.Primary != (key.ID == added) {
			t.Errorf("keys: %+v", last.Keys())
		}
	}
	if json, err = clear.Enable(json, old); err != nil {
		t.Fatal(err)
	}
	if !decrypts(parse(json), before) {
		t.Error("an enabled key does not decrypt")
	}
	for name, err := range map[string]error{
		"promote": second(clear.Promote(json, 1)), "disable": second(clear.Disable(json, 1)), "enable": second(clear.Enable(json, 1)),
	} {
		if err == nil {
			t.Errorf("%s of an unknown key succeeded", name)
		}
	}
}

func second(_ []byte, err error) error { return err }

func TestKeyIDWithoutPrefix(t *testing.T) {
	for _, text := range []string{"", "\x01", "\x01\x00\x00\x00", "hello", "\x00\x00\x00\x00\x01"} {
		if id := seal.KeyID(text); id != 0 {
			t.Errorf("%q has key id %d", text, id)
		}
	}
	if id := seal.KeyID("\x01\x00\x00\x01\x02"); id != 258 {
		t.Errorf("a prefix alone has key id %d, want 258", id)
	}
}

// kms wraps keysets with a key of its own, and fails while it is unavailable.
type kms struct {
	tink.AEAD
	unavailable bool
}

func newKMS(t *testing.T) *kms {
	t.Helper()
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	key, err := aead.New(handle)
	if err != nil {
		t.Fatal(err)
	}
	return &kms{AEAD: key}
}

func (k *kms) Encrypt(plain, associated []byte) ([]byte, error) {
	if k.unavailable {
		return nil, errors.New("unavailable")
	}
	return k.AEAD.Encrypt(plain, associated)
}

// TestWrappedKeyset: a keyset that a KMS key has wrapped is parsed, changed and
// rewrapped with that key only.
func TestWrappedKeyset(t *testing.T) {
	first, second := newKMS(t), newKMS(t)
	wrapping, other, clear := seal.Wrapping{KMS: first}, seal.Wrapping{KMS: second}, seal.Wrapping{}
	wrapped, err := wrapping.Generate()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := wrapping.Parse(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := keys.Encrypt([]byte("secret"), "record", "field")
	if err != nil {
		t.Fatal(err)
	}
	rewrapped, err := wrapping.Rewrap(wrapped, other)
	if err != nil {
		t.Fatal(err)
	}
	after, err := other.Parse(rewrapped)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := after.Decrypt(encrypted, "record", "field"); err != nil || string(plain) != "secret" {
		t.Errorf("the rewrapped keyset decrypts %q, %v", plain, err)
	}
	for name, wrong := range map[string]seal.Wrapping{"another KMS key": other, "no KMS key": clear} {
		_, parse := wrong.Parse(wrapped)
		_, rewrap := wrong.Rewrap(wrapped, clear)
		_, _, add := wrong.AddKey(wrapped)
		if parse == nil || rewrap == nil || add == nil {
			t.Errorf("%s: Parse returns %v, Rewrap %v, AddKey %v, want errors", name, parse, rewrap, add)
		}
	}
	first.unavailable = true
	if _, err := wrapping.Generate(); err == nil {
		t.Error("a keyset was generated although the KMS is unavailable")
	}
}
