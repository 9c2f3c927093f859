package vault_test

import (
	"net/http"
	"strings"
	"testing"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/keyset/kmstest"
	_ "tokenprovider/internal/keyset/vault"
)

const key = "hcvault://vault.example:8200/transit/keys/tokens"

func TestVault(t *testing.T) {
	server := kmstest.NewServer(t, func(r *http.Request, body map[string]any) (map[string]any, bool) {
		switch {
		case r.Header.Get("X-Vault-Token") != "vault-token":
			return nil, false
		case r.URL.Path == "/v1/transit/encrypt/tokens":
			return map[string]any{"data": map[string]any{"ciphertext": "vault:v1:" + kmstest.Reverse(body["plaintext"])}}, true
		case r.URL.Path == "/v1/transit/decrypt/tokens":
			text, _ := body["ciphertext"].(string)
			return map[string]any{"data": map[string]any{"plaintext": kmstest.Reverse(strings.TrimPrefix(text, "vault:v1:"))}}, true
		}
		return nil, false
	})
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "vault-token")
	kmstest.RoundTrip(t, key)

	t.Setenv("VAULT_TOKEN", "another")
	kmstest.CheckDenied(t, key)
}

func TestMalformedURIs(t *testing.T) {
	for _, uri := range []string{"hcvault://", "hcvault:///transit/keys/x", "hcvault://host/elsewhere"} {
		if _, err := keyset.OpenKMS(t.Context(), uri); err == nil {
			t.Errorf("%q is accepted", uri)
		}
	}
}
