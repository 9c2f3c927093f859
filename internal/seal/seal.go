// Package seal keeps secrets out of storage: it seals what is written to Redis
// with a Tink AEAD keyset, and makes the fingerprints by which secrets are
// compared without being kept.
//
// Every sealed value is bound to its place, a record and a field of it, so
// that a value copied to another place does not open there. It also says which
// key of the keyset has sealed it, so keys can be replaced one after the other:
// keyset.go is how.
package seal

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// ErrDecrypt means: the value was not sealed by any key of the keyset, or not for this
// place.
var ErrDecrypt = errors.New("sealed value does not open with this keyset")

// Keyset seals and opens. It is safe for concurrent use.
type Keyset struct{ current atomic.Pointer[opened] }

// opened is a keyset as it is now.
type opened struct {
	aead tink.AEAD
	keys []Key
}

// Parse reads a Tink AEAD keyset in JSON and in clear, as [Generate] makes it.
// The error never quotes the keyset.
func Parse(json []byte) (*Keyset, error) { return Wrapping{}.Parse(json) }

// Replace puts another keyset in the place of this one, for whoever uses it.
func (k *Keyset) Replace(with *Keyset) { k.current.Store(with.current.Load()) }

// Keys returns the keys as they are now.
func (k *Keyset) Keys() []Key { return k.current.Load().keys }

// Primary returns the id of the key that seals.
func (k *Keyset) Primary() uint32 {
	for _, key := range k.Keys() {
		if key.Primary {
			return key.ID
		}
	}
	return 0
}

// Encrypt encrypts plain for one field of one record.
func (k *Keyset) Encrypt(plain []byte, record, field string) ([]byte, error) {
	sealed, err := k.current.Load().aead.Encrypt(plain, place(record, field))
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", field, err)
	}
	return sealed, nil
}

// Decrypt decrypts what [Keyset.Encrypt] made for the same field of the same record.
// It answers [ErrDecrypt] for anything else.
func (k *Keyset) Decrypt(sealed []byte, record, field string) ([]byte, error) {
	plain, err := k.current.Load().aead.Decrypt(sealed, place(record, field))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", field, ErrDecrypt)
	}
	return plain, nil
}

// place is the associated data. Neither part may hold a NUL.
func place(record, field string) []byte { return []byte(record + "\x00" + field) }

// SealedBy returns the id of the key that has sealed a value, 0 if it says none.
// It is Tink's output prefix: a 1 and the id, big-endian (Tink wire format).
func SealedBy[text []byte | string](sealed text) uint32 {
	if len(sealed) < 5 || sealed[0] != 1 {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(sealed[1:5]))
}

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
