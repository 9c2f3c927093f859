package keyset

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go-gcpkms/v2/integration/gcpkms"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// URIs is how a key may be named, for error messages and help texts.
const URIs = "aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID, " +
	"gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K or hcvault://HOST:PORT/transit/keys/NAME"

// timeout is for one answer of the service.
const timeout = 10 * time.Second

// OpenKMS returns the key that a URI names. It does not ask for it yet: whether it
// can be used shows when it is.
func OpenKMS(ctx context.Context, uri string) (tink.AEAD, error) {
	scheme, name, _ := strings.Cut(uri, "://")
	if name == "" {
		return nil, errors.New("not a KMS key: want " + URIs)
	}
	switch scheme {
	case "aws-kms":
		key, err := awskms.NewAEADWithContext(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("reaching AWS KMS: %w", err)
		}
		return bounded{key}, nil
	case "gcp-kms":
		key, err := gcpkms.GetAEADWithContext(ctx, uri, gcpkms.WithTransport(gcpkms.TransportGRPC))
		if err != nil {
			return nil, fmt.Errorf("reaching Google Cloud KMS: %w", err)
		}
		return bounded{key}, nil
	case "hcvault":
		return vault(uri)
	}
	return nil, fmt.Errorf("unknown kind %q of KMS key: want %s", scheme, URIs)
}

// vault is a key of Vault's transit engine. Its address is the URI's, unless
// VAULT_ADDR says otherwise; VAULT_TOKEN, VAULT_CACERT and their like are Vault's
// own.
func vault(uri string) (tink.AEAD, error) {
	parsed, err := url.Parse(uri)
	if err != nil || parsed.Host == "" {
		return nil, errors.New("not a key of Vault's: want hcvault://HOST:PORT/transit/keys/NAME")
	}
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("reading Vault's settings: %w", config.Error)
	}
	config.Timeout, config.MaxRetries = timeout, 1
	if config.Address == api.DefaultAddress {
		config.Address = "https://" + parsed.Host
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("reaching Vault: %w", err)
	}
	key, err := hcvault.NewAEAD(parsed.EscapedPath(), client.Logical())
	if err != nil {
		return nil, fmt.Errorf("a key of Vault's: %w", err)
	}
	return key, nil
}

// bounded gives every call of a key a deadline.
type bounded struct{ key tink.AEADWithContext }

func (b bounded) Encrypt(plain, associated []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return b.key.EncryptWithContext(ctx, plain, associated)
}

func (b bounded) Decrypt(sealed, associated []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return b.key.DecryptWithContext(ctx, sealed, associated)
}
