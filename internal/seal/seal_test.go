package seal_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"tokenprovider/internal/seal"
)

func newKeyset(t *testing.T) *seal.Keyset {
	t.Helper()
	json, err := seal.Generate()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Parse(json)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestSealedValueOpensInItsPlaceOnly(t *testing.T) {
	keys, other := newKeyset(t), newKeyset(t)
	plain := []byte("a token")
	sealed, err := keys.Encrypt(plain, "record", "field")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Fatal("the sealed value shows the plain one")
	}
	opened, err := keys.Decrypt(sealed, "record", "field")
	if err != nil || !bytes.Equal(opened, plain) {
		t.Fatalf("Open = %q, %v", opened, err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another record": func() ([]byte, error) { return keys.Decrypt(sealed, "record2", "field") },
		"another field":  func() ([]byte, error) { return keys.Decrypt(sealed, "record", "field2") },
		"shifted":        func() ([]byte, error) { return keys.Decrypt(sealed, "recordf", "ield") },
		"another keyset": func() ([]byte, error) { return other.Decrypt(sealed, "record", "field") },
		"altered":        func() ([]byte, error) { return keys.Decrypt(flipped, "record", "field") },
		"nothing":        func() ([]byte, error) { return keys.Decrypt(nil, "record", "field") },
	} {
		if opened, err := open(); !errors.Is(err, seal.ErrDecrypt) {
			t.Errorf("%s: Open = %q, %v, want ErrOpen", name, opened, err)
		}
	}
}

func TestParseRefusesWithoutQuoting(t *testing.T) {
	json, err := seal.Generate()
	if err != nil {
		t.Fatal(err)
	}
	mac := `{"primaryKeyId":1,"key":[{"keyData":{"typeUrl":"type.googleapis.com/google.crypto.tink.HmacKey","keyMaterialType":"SYMMETRIC","value":"EgQIAxAgGiDrB0S3uyIyVFXEZVBGRRzIyOnGRn/PbXTQNXcWFl6CEw=="},"outputPrefixType":"TINK","keyId":1,"status":"ENABLED"}]}`
	for name, text := range map[string]string{
		"nothing": "", "not JSON": "hunter2", "cut": string(json[:len(json)/2]), "a MAC keyset": mac,
	} {
		_, err := seal.Parse([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 100 {
			t.Errorf("%s: the error may quote the keyset: %q", name, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	a := seal.Fingerprint("refresh", "token")
	if len(a) != 43 || strings.Contains(a, "token") {
		t.Errorf("Fingerprint = %q, want 43 characters of a digest", a)
	}
	if a == seal.Fingerprint("callback", "token") {
		t.Error("purposes do not keep fingerprints apart")
	}
	// SHA-256 of "refresh", NUL, "token". Redis and the journal store fingerprints: with
	// another value, no stored callback secret would match.
	if want := "5B47QaTx7uQMIakN3os2hq_kAc4qtohmkWXmUZthCHI"; a != want {
		t.Errorf("Fingerprint = %q, want %q", a, want)
	}
}
