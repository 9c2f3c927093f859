package seal_test

import (
	"errors"
	"testing"

	"tokenprovider/internal/seal"
)

func TestKeysAreReplacedOneAfterTheOther(t *testing.T) {
	clear := seal.Wrapping{}
	json, err := clear.Generate()
	if err != nil {
		t.Fatal(err)
	}
	parse := func(json []byte) *seal.Keyset {
		t.Helper()
		keyset, err := clear.Parse(json)
		if err != nil {
			t.Fatal(err)
		}
		return keyset
	}
	sealIt := func(k *seal.Keyset) []byte {
		t.Helper()
		sealed, err := k.Encrypt([]byte("secret"), "record", "field")
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	opens := func(k *seal.Keyset, sealed []byte) bool {
		plain, err := k.Decrypt(sealed, "record", "field")
		if err != nil && !errors.Is(err, seal.ErrDecrypt) {
			t.Errorf("opening: %v", err)
		}
		return err == nil && string(plain) == "secret"
	}
	first := parse(json)
	old := first.Primary()
	before := sealIt(first)

	json, added, err := clear.AddKey(json)
	if err != nil {
		t.Fatal(err)
	}
	both := parse(json)
	if both.Primary() != old || len(both.Keys()) != 2 || seal.SealedBy(sealIt(both)) != old {
		t.Errorf("a key that was added seals already: %+v", both.Keys())
	}
	if json, err = clear.Promote(json, added); err != nil {
		t.Fatal(err)
	}
	promoted := parse(json)
	after := sealIt(promoted)
	if promoted.Primary() != added || seal.SealedBy(after) != added || seal.SealedBy(before) != old {
		t.Errorf("sealed by %d, want %d", seal.SealedBy(after), added)
	}
	if !opens(promoted, before) || !opens(both, after) || opens(first, after) {
		t.Error("a process that has read the keyset after the key was added must open both, one that has not must not")
	}
	first.Replace(promoted)
	if !opens(first, after) || first.Primary() != added {
		t.Error("a keyset that was replaced is still the old one")
	}

	if _, err := clear.Disable(json, added); err == nil {
		t.Error("the key that seals can be disabled")
	}
	if json, err = clear.Disable(json, old); err != nil {
		t.Fatal(err)
	}
	last := parse(json)
	if opens(last, before) || !opens(last, after) {
		t.Error("a disabled key must not open, the other must")
	}
	for _, key := range last.Keys() {
		if key.Enabled != (key.ID == added) || key.Primary != (key.ID == added) {
			t.Errorf("keys: %+v", last.Keys())
		}
	}
	if json, err = clear.Enable(json, old); err != nil {
		t.Fatal(err)
	}
	if !opens(parse(json), before) {
		t.Error("a key cannot be enabled again")
	}
	for name, err := range map[string]error{
		"promote": second(clear.Promote(json, 1)), "disable": second(clear.Disable(json, 1)), "enable": second(clear.Enable(json, 1)),
	} {
		if err == nil {
			t.Errorf("%s: a key that there is not", name)
		}
	}
}

func second(_ []byte, err error) error { return err }

func TestSealedByTellsNothingOfWhatIsNotSealed(t *testing.T) {
	for _, text := range []string{"", "\x01", "\x01\x00\x00\x00", "hello", "\x00\x00\x00\x00\x01"} {
		if id := seal.SealedBy(text); id != 0 {
			t.Errorf("%q was sealed by %d", text, id)
		}
	}
}
