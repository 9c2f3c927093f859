// Package sealtest makes keysets for tests.
package sealtest

import (
	"testing"

	"tokenprovider/internal/seal"
)

// Keyset returns a new keyset.
func Keyset(tb testing.TB) *seal.Keyset {
	tb.Helper()
	_, keyset := JSON(tb)
	return keyset
}

// JSON returns a new keyset, also as it stands in a file.
func JSON(tb testing.TB) ([]byte, *seal.Keyset) {
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
