// Package seal encrypts the secrets in Redis with a Tink AEAD keyset, and computes
// the fingerprints that identify secrets without storing them.
//
// Every encrypted value is bound to its record and field: copied elsewhere, it cannot
// be decrypted. It also contains the id of its key, which allows the replacement of
// keys; see [Wrapping].
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

// ErrDecrypt reports a value that was encrypted with another keyset, or for another
// record or field.
var ErrDecrypt = errors.New("value cannot be decrypted with this keyset")

// Keyset encrypts and decrypts. It is safe for concurrent use.
type Keyset struct{ current atomic.Pointer[state] }

// state is the current content of a keyset.
type state struct {
	aead tink.AEAD
	keys []Key
}

// Parse returns a Tink AEAD keyset from JSON in clear, as from [Generate]. The error
// never contains the keyset.
func Parse(json []byte) (*Keyset, error) { return Wrapping{}.Parse(json) }

// Replace replaces the content of k for all its users, atomically.
func (k *Keyset) Replace(with *Keyset) { k.current.Store(with.current.Load()) }

// Keys returns the current keys.
func (k *Keyset) Keys() []Key { return k.current.Load().keys }

// Primary returns the id of the key that encrypts.
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
		return nil, fmt.Errorf("encrypting %s: %w", field, err)
	}
	return sealed, nil
}

// Decrypt decrypts a value of [Keyset.Encrypt] for the same field of the same record.
// It returns [ErrDecrypt] for any other.
func (k *Keyset) Decrypt(sealed []byte, record, field string) ([]byte, error) {
	plain, err := k.current.Load().aead.Decrypt(sealed, place(record, field))
	if err != nil {
		return nil, fmt.Errorf("decrypting %s: %w", field, ErrDecrypt)
	}
	return plain, nil
}

// place returns the associated data. Neither part may contain a NUL.
func place(record, field string) []byte { return []byte(record + "\x00" + field) }

// KeyID returns the id of the key that encrypted a value, or 0 without one. The id
// is in Tink's output prefix: a 1 and the id, big-endian (Tink wire format).
func KeyID[text []byte | string](sealed text) uint32 {
	if len(sealed) < 5 || sealed[0] != 1 {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(sealed[1:5]))
}

// Sum returns a hash that identifies a high-entropy secret, the last of parts, without
// revealing it: SHA-256 over the parts, separated by NULs. The other parts are the
// secret's purpose, which keeps the sums of different purposes apart.
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

// Fingerprint returns the [Sum] of a secret and its purpose in base64url.
func Fingerprint(purpose, secret string) string {
	sum := Sum(purpose, secret)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
