package grant

import "time"

// minAgeFraction: a token is not renewed in the first 1/minAgeFraction of its
// lifetime. This bounds a grant to ten renewals per lifetime, also if the lifetime
// is shorter than the margin.
const minAgeFraction = 10

// RenewTime returns when to renew a token: before its expiry by the margin and
// some jitter, but not before [MatureTime]. Jitter is a fraction in [0, 1) of a
// twentieth of the lifetime; it spreads grants that were issued together.
func RenewTime(issued, expires time.Time, margin time.Duration, jitter float64) time.Time {
	life := expires.Sub(issued)
	due := expires.Add(-margin - time.Duration(jitter*float64(life)/20))
	if earliest := MatureTime(issued, expires); due.Before(earliest) {
		return earliest
	}
	return due
}

// MatureTime returns the end of the first tenth of a token's lifetime.
func MatureTime(issued, expires time.Time) time.Time {
	return issued.Add(expires.Sub(issued) / minAgeFraction)
}

// Backoff returns how long to wait after the given number of failures: 1 s
// doubling to 5 minutes, less up to half of it by jitter in [0, 1). A longer
// wait that the server asked for takes precedence.
func Backoff(failures int, jitter float64, asked time.Duration) time.Duration {
	const first, longest = time.Second, 5 * time.Minute
	wait := longest
	if n := max(failures, 1) - 1; n < 16 {
		wait = min(first<<n, longest)
	}
	wait -= time.Duration(jitter * float64(wait) / 2)
	return max(wait, asked)
}
