package testkit

import (
	"testing"

	"tokenprovider/internal/seal"
)

// Keyset returns a new keyset.
func Keyset(tb testing.TB) *seal.Keyset {
	tb.Helper()
	_, keyset := KeysetJSON(tb)
	return keyset
}

// KeysetJSON returns a new keyset, and its JSON as in a keyset file.
func KeysetJSON(tb testing.TB) ([]byte, *seal.Keyset) {
	tb.Helper()
	json, err := seal.Generate()
	if err != nil {
		tb.Fatal(err)
	}
	keyset, err := seal.Parse(json)
	if err != nil {
		tb.Fatal(err)
	}
	return json, keyset
}
