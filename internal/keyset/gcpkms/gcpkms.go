// Package gcpkms registers Google Cloud KMS for keysets with a URI such as
// gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K. Credentials are
// Google's Application Default Credentials.
package gcpkms

import (
	"context"
	"fmt"

	"github.com/tink-crypto/tink-go-gcpkms/v2/integration/gcpkms"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/api/option"

	"tokenprovider/internal/keyset"
)

func init() {
	keyset.RegisterKMS("gcp-kms", keyset.KMS{
		Example: "gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K",
		Open:    func(ctx context.Context, uri string) (tink.AEAD, error) { return open(ctx, uri) },
	})
}

func open(ctx context.Context, uri string, options ...option.ClientOption) (tink.AEAD, error) {
	key, err := gcpkms.GetAEADWithContext(ctx, uri,
		gcpkms.WithTransport(gcpkms.TransportGRPC), gcpkms.WithGoogleAPIClientOptions(options...))
	if err != nil {
		return nil, fmt.Errorf("preparing Google Cloud KMS: %w", err)
	}
	return keyset.LimitTime(key), nil
}
