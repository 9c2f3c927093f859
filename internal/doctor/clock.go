package doctor

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// How far a clock may be from ours. Recall's signatures are refused beyond 5
// minutes, and tokens are served until 2 minutes before their end.
const (
	smallSkew = 3 * time.Second
	largeSkew = 30 * time.Second
)

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
	case away > largeSkew:
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
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, base.JoinPath("/").String(), nil)
	if err != nil {
		return notChecked("%s cannot be asked", who)
	}
	asked := c.Now()
	response, err := c.http().Do(request)
	if err != nil {
		return notChecked("%s cannot be reached from here", who)
	}
	_ = response.Body.Close()
	took := c.Now().Sub(asked)
	theirs, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return notChecked("%s does not say the time", who)
	}
	// A Date has no fractions of a second.
	return judgeSkew(who+"'s", theirs.Add(500*time.Millisecond), asked.Add(took/2), took/2+600*time.Millisecond)
}

// http is a client that follows no redirects.
func (c Config) http() *http.Client {
	client := *c.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}
