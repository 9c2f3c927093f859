// Package seal keeps secrets out of storage: it seals what is written to Redis
// with a Tink AEAD keyset, and makes the fingerprints by which secrets are
// compared without being kept.
//
// Every sealed value is bound to its place, a record and a field of it, so
// that a value copied to another place does not open there.
package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// ErrOpen means: the value was not sealed by any key of the keyset, or not for this
// place.
var ErrOpen = errors.New("sealed value does not open with this keyset")

// Keyset seals and opens. It is safe for concurrent use.
type Keyset struct{ aead tink.AEAD }

// Parse reads a cleartext Tink AEAD keyset in JSON, as [Generate] makes it. The
// error never quotes the keyset.
func Parse(json []byte) (*Keyset, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(json)))
	if err != nil {
		return nil, errors.New("not a Tink keyset in JSON")
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, errors.New("not a keyset for AEAD, or without an enabled primary key")
	}
	return &Keyset{primitive}, nil
}

// Generate makes a new keyset with one AES-256-GCM key, in JSON.
func Generate() ([]byte, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	var json bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&json)); err != nil {
		return nil, fmt.Errorf("writing the keyset: %w", err)
	}
	return json.Bytes(), nil
}

// Seal encrypts plain for one field of one record.
func (k *Keyset) Seal(plain []byte, record, field string) ([]byte, error) {
	sealed, err := k.aead.Encrypt(plain, place(record, field))
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", field, err)
	}
	return sealed, nil
}

// Open decrypts what [Keyset.Seal] made for the same field of the same record.
// It answers [ErrOpen] for anything else.
func (k *Keyset) Open(sealed []byte, record, field string) ([]byte, error) {
	plain, err := k.aead.Decrypt(sealed, place(record, field))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", field, ErrOpen)
	}
	return plain, nil
}

// place is the associated data. Neither part may hold a NUL.
func place(record, field string) []byte { return []byte(record + "\x00" + field) }

// Sum identifies a high-entropy secret, the last of parts, without revealing it:
// SHA-256 over the parts with a NUL between them. The parts before it say what
// the secret is for, which keeps one secret's sum from being taken for
// another's.
func Sum(parts ...string) [sha256.Size]byte {
	var stack [160]byte // enough for a callback's secret: no garbage on the serving path
	text := stack[:0]
	for i, part := range parts {
		if i > 0 {
			text = append(text, 0)
		}
		text = append(text, part...)
	}
	return sha256.Sum256(text)
}

// Fingerprint is the [Sum] of a secret and its purpose in base64url.
func Fingerprint(purpose, secret string) string {
	sum := Sum(purpose, secret)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
