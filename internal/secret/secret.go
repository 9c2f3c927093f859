// Package secret keeps text out of logs and errors: tokens, codes, client secrets,
// callback URLs.
//
// A [Text] prints, marshals and logs as "[redacted]" with every verb and encoder.
// Only [Text.Reveal] returns the text, so a search for that name finds every place
// where a secret leaves the type.
package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Text is a secret string. The zero value is the empty secret.
type Text struct{ value string }

// New returns value as a secret.
func New(value string) Text { return Text{value} }

// Reveal returns the text, for the one call that needs it.
func (t Text) Reveal() string { return t.value }

// IsZero reports whether the text is empty.
func (t Text) IsZero() bool { return t.value == "" }

// Equal reports whether two secrets are equal, in a time that depends on their
// lengths alone.
func (t Text) Equal(other Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.value), []byte(other.value)) == 1
}

// String implements [fmt.Stringer]; it returns "[redacted]".
func (t Text) String() string { return redacted }

// Format implements [fmt.Formatter], which all verbs use.
func (t Text) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements [encoding.TextMarshaler], which JSON, YAML and zap's
// reflection use.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], so that settings are parsed
// into a secret directly.
func (t *Text) UnmarshalText(text []byte) error {
	t.value = string(text)
	return nil
}
