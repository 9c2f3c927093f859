package awskms_test

import (
	"net/http"
	"strings"
	"testing"

	"tokenprovider/internal/keyset"
	_ "tokenprovider/internal/keyset/awskms"
	"tokenprovider/internal/keyset/kmstest"
)

const arn = "arn:aws:kms:eu-central-1:111122223333:key/tokens"

func TestAWS(t *testing.T) {
	server := kmstest.NewServer(t, func(r *http.Request, body map[string]any) (map[string]any, bool) {
		if body["KeyId"] != arn || !strings.Contains(r.Header.Get("Authorization"), "AKIDEXAMPLE") {
			return nil, false
		}
		switch r.Header.Get("X-Amz-Target") {
		case "TrentService.Encrypt":
			return map[string]any{"CiphertextBlob": kmstest.Reverse(body["Plaintext"]), "KeyId": body["KeyId"]}, true
		case "TrentService.Decrypt":
			return map[string]any{"Plaintext": kmstest.Reverse(body["CiphertextBlob"]), "KeyId": body["KeyId"]}, true
		}
		return nil, false
	})
	t.Setenv("AWS_ENDPOINT_URL_KMS", server.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	kmstest.RoundTrip(t, "aws-kms://"+arn)

	t.Setenv("AWS_ACCESS_KEY_ID", "another")
	kmstest.CheckDenied(t, "aws-kms://"+arn)
}

func TestMalformedURIs(t *testing.T) {
	for _, uri := range []string{"aws-kms://", "aws-kms://nonsense"} {
		if _, err := keyset.OpenKMS(t.Context(), uri); err == nil {
			t.Errorf("%q is accepted", uri)
		}
	}
}
