package neterr

import (
	"net/http"
	"strconv"
	"time"
)

// MaxRetryAfter is the longest wait that is accepted: a longer one is taken for a
// mistake of the sender, and shortened to this.
const MaxRetryAfter = time.Hour

// RetryAfter returns the wait from now: 0 if the header is missing, past or
// not understood. Besides the seconds and the HTTP date of RFC 9110, section
// 10.2.3, Zoom documents an ISO 8601 instant (developers.zoom.us, rate limits).
func RetryAfter(header http.Header, now time.Time) time.Duration {
	value := header.Get("Retry-After")
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return bound(time.Duration(min(max(seconds, 0), int64(MaxRetryAfter/time.Second))) * time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return bound(at.Sub(now))
	}
	if at, err := time.Parse(time.RFC3339, value); err == nil {
		return bound(at.Sub(now))
	}
	return 0
}

func bound(wait time.Duration) time.Duration { return min(max(wait, 0), MaxRetryAfter) }
