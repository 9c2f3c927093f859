package grant

import "time"

// youngest is the fraction of a token's lifetime during which it is not renewed, for
// any margin. It limits a grant to ten refreshes per lifetime, so a lifetime below the
// margin cannot cause a hot loop.
const youngest = 10

// RenewTime returns the due time of a token's renewal: its expiry less the margin and
// some jitter, but not in the first tenth of its lifetime. Jitter is a fraction in
// [0, 1) of a twentieth of the lifetime; it spreads grants that were issued together.
func RenewTime(issued, expires time.Time, margin time.Duration, jitter float64) time.Time {
	life := expires.Sub(issued)
	due := expires.Add(-margin - time.Duration(jitter*float64(life)/20))
	if earliest := MatureTime(issued, expires); due.Before(earliest) {
		return earliest
	}
	return due
}

// MatureTime returns when a token has lived the tenth of its life before which
// nothing renews it.
func MatureTime(issued, expires time.Time) time.Time {
	return issued.Add(expires.Sub(issued) / youngest)
}

// Backoff returns how long to wait after the given number of failures: 1 s
// doubling to 5 minutes, less up to half of it by jitter in [0, 1). A longer
// wait that the other side asked for wins.
func Backoff(failures int, jitter float64, asked time.Duration) time.Duration {
	const first, longest = time.Second, 5 * time.Minute
	wait := longest
	if n := max(failures, 1) - 1; n < 16 {
		wait = min(first<<n, longest)
	}
	wait -= time.Duration(jitter * float64(wait) / 2)
	return max(wait, asked)
}
