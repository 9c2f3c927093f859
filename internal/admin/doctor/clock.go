package doctor

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"tokenprovider/internal/clock"
)

// smallSkew is the skew that is reported as ok.
const smallSkew = 3 * time.Second

// judgeSkew compares a server's clock with this machine's, within the error of the
// measurement.
func judgeSkew(whose string, theirs, ours time.Time, margin time.Duration) Finding {
	skew := theirs.Sub(ours)
	text := "matches this machine's"
	if skew.Abs() > margin {
		word := "ahead of"
		if skew < 0 {
			word = "behind"
		}
		text = "is " + skew.Abs().Round(100*time.Millisecond).String() + " " + word + " this machine's"
	}
	const fix = "synchronize the clocks with NTP: otherwise expired tokens are served, and valid callback signatures rejected"
	switch away := skew.Abs() - margin; {
	case away > clock.Tolerance:
		return fault(fix, "%s clock %s", whose, text)
	case away > smallSkew:
		return warning(fix, "%s clock %s", whose, text)
	}
	return ok("%s clock %s", whose, text)
}

func (c Config) redisClock(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	before := c.Now()
	theirs, err := c.store.Now(ctx)
	if err != nil {
		return notChecked(redisSilent)
	}
	elapsed := c.Now().Sub(before)
	return judgeSkew("Redis's", theirs, before.Add(elapsed/2), elapsed/2+50*time.Millisecond)
}

// httpClock compares the Date header of a response, of any status.
func (c Config) httpClock(ctx context.Context, server string, base *url.URL) Finding {
	if base == nil {
		return notChecked("the URL of %s is not set", server)
	}
	before := c.Now()
	theirs, err := clock.ServerTime(ctx, c.http(), base)
	if err != nil {
		return notChecked("%s does not report the time, or is unreachable from here", server)
	}
	elapsed := c.Now().Sub(before)
	return judgeSkew(server+"'s", theirs, before.Add(elapsed/2), elapsed/2+600*time.Millisecond)
}

// http returns a client that follows no redirects.
func (c Config) http() *http.Client {
	client := *c.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}
