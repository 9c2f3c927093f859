// Package callback creates and parses callback URLs: Recall calls a user's URL for the
// user's access token.
//
// The form is BASE/callback/ID/SECRET. ID is the grant's id, which is not secret.
// SECRET is 256 random bits, generated for one credential alone; it proves that the
// caller received the URL from us. Only its fingerprint is stored, so a URL cannot
// be reconstructed.
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

// Prefix is the prefix of every callback path on the token server.
const Prefix = "/callback/"

const secretLength = 43 // 256 bits in base64url

// Address is the part of a callback URL that identifies a grant and its secret.
type Address struct {
	ID     grant.ID
	Secret secret.Text
}

// NewAddress returns an address of a grant, with a new secret.
func NewAddress(id grant.ID) Address {
	var bits [32]byte
	_, _ = rand.Read(bits[:]) // never fails: crypto/rand ends the program rather than return an error
	return Address{id, secret.New(base64.RawURLEncoding.EncodeToString(bits[:]))}
}

// CallbackSecret returns the stored form of the address's secret, without an end.
func (a Address) CallbackSecret() grant.CallbackSecret {
	return grant.CallbackSecret{Fingerprint: a.fingerprint()}
}

// URL returns the callback URL under base, the public URL of the token server.
func (a Address) URL(base *url.URL) secret.Text {
	return secret.New(base.JoinPath(Prefix, string(a.ID), a.Secret.Reveal()).String())
}

// Matches reports whether the address's secret is one of secrets, and that one has
// not ended at now. Its time does not depend on which of them matches.
func (a Address) Matches(secrets []grant.CallbackSecret, now time.Time) bool {
	presented, matches := a.fingerprint(), false
	for _, stored := range secrets {
		same := subtle.ConstantTimeCompare(presented[:], stored.Fingerprint[:]) == 1
		valid := stored.NotAfter.IsZero() || now.Before(stored.NotAfter)
		matches = matches || same && valid
	}
	return matches
}

// fingerprint covers the secret alone. The associated data of the encrypted record
// binds it to its grant.
func (a Address) fingerprint() grant.Fingerprint {
	return seal.Sum("callback", a.Secret.Reveal())
}

// ParsePath parses the path of a request, unescaped. It reports whether the path
// has the form of a callback.
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

// ParseURL parses a callback URL as Recall returns it. Base is the part before the
// callback's path, without a trailing slash. Ok reports whether the URL has the
// form of a callback.
func ParseURL(raw string) (base string, address Address, ok bool) {
	at := strings.LastIndex(raw, Prefix)
	if at < 0 {
		return "", Address{}, false
	}
	address, ok = ParsePath(raw[at:])
	return strings.TrimRight(raw[:at], "/"), address, ok
}
