// Package callback makes and reads callback addresses: the URL that Recall
// calls for a user's access token.
//
// The form is BASE/callback/ID/SECRET. The ID is the grant's and only finds it;
// the secret, 256 random bits made for one credential alone, proves that the
// caller was given the URL. It is kept as a fingerprint, so an address can be
// made but not made again.
package callback

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"strings"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
)

// Prefix is how the path of every callback begins on the token server.
const Prefix = "/callback/"

const secretLength = 43 // 256 bits in base64url

// Address is one callback address.
type Address struct {
	ID     grant.ID
	Secret secret.Text
}

// NewAddress makes an address with a new secret for a grant.
func NewAddress(id grant.ID) Address {
	var bits [32]byte
	_, _ = rand.Read(bits[:]) // never fails: crypto/rand ends the program rather than return an error
	return Address{id, secret.New(base64.RawURLEncoding.EncodeToString(bits[:]))}
}

// CallbackSecret returns the key that lets the token server know the address again.
func (a Address) CallbackSecret() grant.CallbackSecret {
	return grant.CallbackSecret{Fingerprint: a.fingerprint()}
}

// URL returns the address under base, the public URL of the token server.
func (a Address) URL(base *url.URL) secret.Text {
	return secret.New(base.JoinPath(Prefix, string(a.ID), a.Secret.Reveal()).String())
}

// Matches reports whether the address's secret is one of keys at now. It takes
// the same time whichever key fits.
func (a Address) Matches(keys []grant.CallbackSecret, now time.Time) bool {
	presented, opens := a.fingerprint(), false
	for _, key := range keys {
		same := subtle.ConstantTimeCompare(presented[:], key.Fingerprint[:]) == 1
		alive := key.NotAfter.IsZero() || now.Before(key.NotAfter)
		opens = opens || same && alive
	}
	return opens
}

// fingerprint is of the secret alone: what binds it to its grant is the seal of
// the grant's keys.
func (a Address) fingerprint() grant.Fingerprint {
	return seal.Sum("callback", a.Secret.Reveal())
}

// ParsePath reads the path of a request, as it stands in the request line.
func ParsePath(path string) (Address, bool) {
	rest, ok := strings.CutPrefix(path, Prefix)
	if !ok {
		return Address{}, false
	}
	name, text, ok := strings.Cut(rest, "/")
	if !ok || len(text) != secretLength {
		return Address{}, false
	}
	id, ok := grant.ParseID(name)
	if !ok {
		return Address{}, false
	}
	return Address{id, secret.New(text)}, true
}

// ParseURL reads a URL that Recall holds. It returns what comes before the
// callback's path, without a slash at its end: the base that it was made under.
func ParseURL(raw string) (base string, address Address, ok bool) {
	at := strings.LastIndex(raw, Prefix)
	if at < 0 {
		return "", Address{}, false
	}
	address, ok = ParsePath(raw[at:])
	return strings.TrimRight(raw[:at], "/"), address, ok
}
