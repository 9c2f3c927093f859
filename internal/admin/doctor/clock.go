package doctor

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"tokenprovider/internal/clock"
)

// smallSkew is how far a clock may be from ours without a word.
const smallSkew = 3 * time.Second

func judgeSkew(whose string, theirs, ours time.Time, error time.Duration) Finding {
	skew := theirs.Sub(ours)
	text := "the same as here"
	if skew.Abs() > error {
		word := "ahead of"
		if skew < 0 {
			word = "behind"
		}
		text = skew.Abs().Round(100*time.Millisecond).String() + " " + word + " this machine's"
	}
	const mend = "set the clocks by NTP: tokens are taken for good when they are not, and signed callbacks are refused"
	switch away := skew.Abs() - error; {
	case away > clock.Tolerance:
		return fault(mend, "%s clock is %s", whose, text)
	case away > smallSkew:
		return warning(mend, "%s clock is %s", whose, text)
	}
	return ok("%s clock is %s", whose, text)
}

func (c Config) redisClock(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	asked := c.Now()
	theirs, err := c.store.Now(ctx)
	if err != nil {
		return notChecked("Redis does not answer")
	}
	took := c.Now().Sub(asked)
	return judgeSkew("Redis's", theirs, asked.Add(took/2), took/2+50*time.Millisecond)
}

// httpClock reads the Date of an answer, whatever the answer is.
func (c Config) httpClock(ctx context.Context, who string, base *url.URL) Finding {
	if base == nil {
		return notChecked("the settings do not say where %s is", who)
	}
	asked := c.Now()
	theirs, err := clock.ServerTime(ctx, c.http(), base)
	if err != nil {
		return notChecked("%s does not say the time, or cannot be reached from here", who)
	}
	took := c.Now().Sub(asked)
	return judgeSkew(who+"'s", theirs, asked.Add(took/2), took/2+600*time.Millisecond)
}

// http is a client that follows no redirects.
func (c Config) http() *http.Client {
	client := *c.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}
