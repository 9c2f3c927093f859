// Package awskms registers AWS KMS for keysets with a URI such as
// aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID. Credentials and endpoint are those
// of the AWS SDK (docs.aws.amazon.com/sdkref).
package awskms

import (
	"context"
	"fmt"
	"strings"

	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/tink"

	"tokenprovider/internal/keyset"
)

const scheme = "aws-kms"

func init() {
	keyset.RegisterKMS(scheme, keyset.KMS{Example: scheme + "://arn:aws:kms:REGION:ACCOUNT:key/ID", Open: open})
}

func open(ctx context.Context, uri string) (tink.AEAD, error) {
	key, err := awskms.NewAEADWithContext(ctx, strings.TrimPrefix(uri, scheme+"://"))
	if err != nil {
		return nil, fmt.Errorf("preparing AWS KMS: %w", err)
	}
	return keyset.LimitTime(key), nil
}
