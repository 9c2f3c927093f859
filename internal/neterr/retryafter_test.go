package neterr_test

import (
	"net/http"
	"testing"
	"time"

	"tokenprovider/internal/neterr"
)

func TestParse(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"99999999999":                   neterr.MaxRetryAfter,
		"9223372036854775807":           neterr.MaxRetryAfter,
		"Tue, 24 Nov 2026 12:00:30 GMT": 30 * time.Second,
		"Tue, 24 Nov 2026 11:00:00 GMT": 0,
		"2026-11-24T12:01:00Z":          time.Minute,
		"2026-11-24T13:01:00+01:00":     time.Minute,
		"2036-11-24T12:01:00Z":          neterr.MaxRetryAfter,
		"soon":                          0,
	} {
		header := http.Header{}
		header.Set("Retry-After", value)
		if got := neterr.RetryAfter(header, now); got != want {
			t.Errorf("Parse(%q) = %v, want %v", value, got, want)
		}
	}
	if got := neterr.RetryAfter(http.Header{}, now); got != 0 {
		t.Errorf("without a header: %v", got)
	}
}
