package store_test

import (
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

// BenchmarkServing compares the one read of a callback with a GET.
func BenchmarkServing(b *testing.B) {
	keyset := testkit.Keyset(b)
	client := testkit.StartRedis(b, "--appendfsync", "no").Client()
	s := store.New(client, keyset)
	address := callback.NewAddress(grant.NewID("default", "ann"))
	now := time.Now()
	token := secret.New(strings.Repeat("x", 806))
	if _, err := s.AcceptConsent(b.Context(), address.ID, grant.Consent{App: "default", User: "ann", Tokens: grant.Tokens{
		Access: token, Refresh: token, Issued: now, Expires: now.Add(time.Hour),
	}}, now.Add(time.Hour)); err != nil {
		b.Fatal(err)
	}
	if _, err := s.Change(b.Context(), address.ID, 1, store.Change{Secrets: &[]grant.CallbackSecret{address.CallbackSecret()}}); err != nil {
		b.Fatal(err)
	}
	if err := client.Set(b.Context(), "bare", token.Reveal(), 0).Err(); err != nil {
		b.Fatal(err)
	}
	b.Run("GET", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := client.Get(b.Context(), "bare").Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Serving", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.ReadServingRecord(b.Context(), address.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
}
