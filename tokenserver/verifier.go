package tokenserver

import (
	"errors"
	"net/http"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"tokenprovider/internal/secret"
)

// Verifier checks the signatures that Recall puts on its requests once the
// workspace has a verification secret (docs.recall.ai, authenticating requests;
// the scheme is Standard Webhooks, with a tolerance of 5 minutes).
type Verifier struct{ secrets []*standardwebhooks.Webhook }

// NewVerifier returns a verifier that accepts a signature by any of secrets,
// each in the form whsec_…
func NewVerifier(secrets []secret.Text) (*Verifier, error) {
	if len(secrets) == 0 {
		return nil, errors.New("no verification secret")
	}
	v := &Verifier{}
	for _, text := range secrets {
		webhook, err := standardwebhooks.NewWebhook(text.Reveal())
		if err != nil || text.IsZero() {
			return nil, errors.New("a verification secret is not of the form whsec_… (base64)")
		}
		v.secrets = append(v.secrets, webhook)
	}
	return v, nil
}

// Verify reports whether the headers of a request without a body hold a valid,
// fresh signature.
func (v *Verifier) Verify(header http.Header) bool {
	for _, webhook := range v.secrets {
		if webhook.Verify(nil, header) == nil {
			return true
		}
	}
	return false
}
