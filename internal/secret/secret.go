// Package secret holds text that must never be shown: tokens, codes, client
// secrets, callback URLs.
//
// A [Text] prints, marshals and logs as "[redacted]" whatever the verb or the
// encoder. The one way out is [Text.Reveal], so a search for that name finds
// every place where a secret leaves the type.
package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Text is a secret string. The zero value is the empty secret.
type Text struct{ value string }

// New makes a secret of value.
func New(value string) Text { return Text{value} }

// Reveal returns the secret itself, for the one call that has to send it.
func (t Text) Reveal() string { return t.value }

// IsZero reports whether there is no secret at all.
func (t Text) IsZero() bool { return t.value == "" }

// Equal compares two secrets in a time that depends on their lengths alone.
func (t Text) Equal(other Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.value), []byte(other.value)) == 1
}

// String implements [fmt.Stringer]; it never shows the secret.
func (t Text) String() string { return redacted }

// Format implements [fmt.Formatter], which every verb goes through.
func (t Text) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements [encoding.TextMarshaler], which JSON, YAML and zap's
// reflection use.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], so that settings can be
// read straight into a secret.
func (t *Text) UnmarshalText(text []byte) error {
	t.value = string(text)
	return nil
}
