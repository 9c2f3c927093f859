// Package vault registers the transit engine of HashiCorp Vault for keysets with a
// URI such as hcvault://HOST:PORT/transit/keys/NAME.
package vault

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/tink"

	"tokenprovider/internal/keyset"
)

const example = "hcvault://HOST:PORT/transit/keys/NAME"

func init() { keyset.RegisterKMS("hcvault", keyset.KMS{Example: example, Open: open}) }

// open returns a key of the transit engine. VAULT_ADDR overrides the address in the
// URI. VAULT_TOKEN, VAULT_CACERT and the others are Vault's own variables.
func open(_ context.Context, uri string) (tink.AEAD, error) {
	parsed, err := url.Parse(uri)
	if err != nil || parsed.Host == "" {
		return nil, errors.New("must be the URI of a Vault key: " + example)
	}
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("reading Vault's variables: %w", config.Error)
	}
	config.Timeout, config.MaxRetries = keyset.KMSTimeout, 1
	if config.Address == api.DefaultAddress {
		config.Address = "https://" + parsed.Host
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("preparing Vault's client: %w", err)
	}
	key, err := hcvault.NewAEAD(parsed.EscapedPath(), client.Logical())
	if err != nil {
		return nil, fmt.Errorf("preparing Vault's key: %w", err)
	}
	return key, nil
}
