// Package kmstest checks clients of key management services against stand-ins.
package kmstest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/tink-crypto/tink-go/v2/tink"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
)

// NewServer returns a stand-in for a service that takes and returns JSON. The
// responder returns false for a request that the service would deny.
func NewServer(t *testing.T, respond func(r *http.Request, body map[string]any) (map[string]any, bool)) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("a request to the KMS is not JSON: %v", err)
		}
		response, allowed := respond(r, body)
		if !allowed {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":["permission denied"],"__type":"AccessDeniedException"}`))
			return
		}
		_ = json.NewEncoder(w).Encode(response)
	}))
	t.Cleanup(server.Close)
	return server
}

// Reverse "encrypts" and "decrypts" base64: it reverses the bytes.
func Reverse(value any) string {
	text, _ := value.(string)
	plain, _ := base64.StdEncoding.DecodeString(text)
	slices.Reverse(plain)
	return base64.StdEncoding.EncodeToString(plain)
}

// RoundTrip is [RoundTripKey] for the key with a URI.
func RoundTrip(t *testing.T, uri string) {
	t.Helper()
	key, err := keyset.OpenKMS(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	RoundTripKey(t, key)
}

// RoundTripKey wraps a keyset with a key, reads it back, changes and unwraps it.
func RoundTripKey(t *testing.T, key tink.AEAD) {
	t.Helper()
	wrapping := seal.Wrapping{KMS: key}
	wrapped, err := wrapping.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(wrapped, []byte("encryptedKeyset")) {
		t.Errorf("not wrapped: %s", wrapped)
	}
	keys, err := wrapping.Parse(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := keys.Encrypt([]byte("secret"), "record", "field")
	if err != nil {
		t.Fatal(err)
	}
	more, id, err := wrapping.AddKey(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	promoted, err := wrapping.Promote(more, id)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err = wrapping.Parse(promoted); err != nil {
		t.Fatal(err)
	}
	if plain, err := keys.Decrypt(encrypted, "record", "field"); err != nil || string(plain) != "secret" || keys.Primary() != id {
		t.Errorf("decrypted %q, %v, primary %d", plain, err, keys.Primary())
	}
	if _, err := seal.Parse(wrapped); err == nil {
		t.Error("a wrapped keyset was read without the KMS")
	}
	clear, err := wrapping.Rewrap(promoted, seal.Wrapping{})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := seal.Parse(clear); err != nil || keys.Primary() != id {
		t.Errorf("unwrapped: %v", err)
	}
	if _, err := wrapping.Parse(clear); err == nil {
		t.Error("a keyset in clear was accepted as a wrapped one")
	}
}

// CheckDenied is [CheckDeniedKey] for the key with a URI.
func CheckDenied(t *testing.T, uri string) {
	t.Helper()
	key, err := keyset.OpenKMS(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	CheckDeniedKey(t, key)
}

// CheckDeniedKey checks that a key that the service denies wraps nothing.
func CheckDeniedKey(t *testing.T, key tink.AEAD) {
	t.Helper()
	if _, err := (seal.Wrapping{KMS: key}).Generate(); err == nil {
		t.Error("a keyset was wrapped without permission")
	}
}
