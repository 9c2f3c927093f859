package keyset_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
)

// service is a stand-in for a KMS: it "encrypts" by turning the bytes round, and
// refuses whoever has no right.
func service(t *testing.T, answer func(r *http.Request, body map[string]any) (map[string]any, bool)) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("a request to the KMS is not JSON: %v", err)
		}
		got, allowed := answer(r, body)
		if !allowed {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":["permission denied"],"__type":"AccessDeniedException"}`))
			return
		}
		_ = json.NewEncoder(w).Encode(got)
	}))
	t.Cleanup(server.Close)
	return server
}

func turned(value any) string {
	text, _ := value.(string)
	plain, _ := base64.StdEncoding.DecodeString(text)
	for i, j := 0, len(plain)-1; i < j; i, j = i+1, j-1 {
		plain[i], plain[j] = plain[j], plain[i]
	}
	return base64.StdEncoding.EncodeToString(plain)
}

// roundTrip makes a wrapped keyset, reads it back, and changes it.
func roundTrip(t *testing.T, uri string) {
	t.Helper()
	key, err := keyset.OpenKMS(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	wrapping := seal.Wrapping{KMS: key}
	wrapped, err := wrapping.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(wrapped, []byte("encryptedKeyset")) {
		t.Errorf("not wrapped: %s", wrapped)
	}
	keyset, err := wrapping.Parse(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := keyset.Encrypt([]byte("secret"), "record", "field")
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
	if keyset, err = wrapping.Parse(promoted); err != nil {
		t.Fatal(err)
	}
	if plain, err := keyset.Decrypt(sealed, "record", "field"); err != nil || string(plain) != "secret" || keyset.Primary() != id {
		t.Errorf("opened %q, %v, primary %d", plain, err, keyset.Primary())
	}
	if _, err := seal.Parse(wrapped); err == nil {
		t.Error("a wrapped keyset was read without the KMS")
	}
	clear, err := wrapping.Rewrap(promoted, seal.Wrapping{})
	if err != nil {
		t.Fatal(err)
	}
	if keyset, err := seal.Parse(clear); err != nil || keyset.Primary() != id {
		t.Errorf("unwrapped: %v", err)
	}
	if _, err := wrapping.Parse(clear); err == nil {
		t.Error("a keyset in clear was taken for a wrapped one")
	}
}

func TestVault(t *testing.T) {
	server := service(t, func(r *http.Request, body map[string]any) (map[string]any, bool) {
		switch {
		case r.Header.Get("X-Vault-Token") != "vault-token":
			return nil, false
		case r.URL.Path == "/v1/transit/encrypt/tokens":
			return map[string]any{"data": map[string]any{"ciphertext": "vault:v1:" + turned(body["plaintext"])}}, true
		case r.URL.Path == "/v1/transit/decrypt/tokens":
			text, _ := body["ciphertext"].(string)
			return map[string]any{"data": map[string]any{"plaintext": turned(strings.TrimPrefix(text, "vault:v1:"))}}, true
		}
		return nil, false
	})
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "vault-token")
	roundTrip(t, "hcvault://vault.example:8200/transit/keys/tokens")

	t.Setenv("VAULT_TOKEN", "another")
	key, err := keyset.OpenKMS(t.Context(), "hcvault://vault.example:8200/transit/keys/tokens")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (seal.Wrapping{KMS: key}).Generate(); err == nil {
		t.Error("a keyset was wrapped without the right to")
	}
}

func TestAWS(t *testing.T) {
	server := service(t, func(r *http.Request, body map[string]any) (map[string]any, bool) {
		if body["KeyId"] != "arn:aws:kms:eu-central-1:111122223333:key/tokens" || !strings.Contains(r.Header.Get("Authorization"), "AKIDEXAMPLE") {
			return nil, false
		}
		switch r.Header.Get("X-Amz-Target") {
		case "TrentService.Encrypt":
			return map[string]any{"CiphertextBlob": turned(body["Plaintext"]), "KeyId": body["KeyId"]}, true
		case "TrentService.Decrypt":
			return map[string]any{"Plaintext": turned(body["CiphertextBlob"]), "KeyId": body["KeyId"]}, true
		}
		return nil, false
	})
	t.Setenv("AWS_ENDPOINT_URL_KMS", server.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	roundTrip(t, "aws-kms://arn:aws:kms:eu-central-1:111122223333:key/tokens")
}

func TestRefuses(t *testing.T) {
	for _, uri := range []string{"", "keyset", "https://example.com", "aws-kms://", "aws-kms://nonsense", "hcvault:///transit/keys/x", "hcvault://host/elsewhere"} {
		if _, err := keyset.OpenKMS(t.Context(), uri); err == nil {
			t.Errorf("%q is taken for a key", uri)
		}
	}
}
