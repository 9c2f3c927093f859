// Package doctor looks at a deployment from outside and says what is wrong with it:
// for each check a verdict, what was found, and, where something is wrong, what
// mends it, in words for whoever has been woken by it.
//
// A check changes nothing that lasts, spends no token and creates nothing at Recall.
// All run at the same time, each within a bound. One that cannot be made says why.
// [Config.Checks] is the list, checks of one kind a file.
package doctor

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"tokenprovider/internal/recall"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// Verdict is what a check comes to.
type Verdict string

// The verdicts.
const (
	OK         Verdict = "ok"
	Warning    Verdict = "warning"     // it works, and should not stay so
	Fault      Verdict = "fault"       // users are hurt by it, or will be
	NotChecked Verdict = "not_checked" // nobody knows
)

// Finding is what came of a check.
type Finding struct {
	Check    string
	Verdict  Verdict
	Found    string // for people, without secrets
	Fix      string // what to do about it; empty if nothing is to be done
	Duration time.Duration
}

func ok(found string, values ...any) Finding {
	return Finding{Verdict: OK, Found: fmt.Sprintf(found, values...)}
}

func warning(mend, found string, values ...any) Finding {
	return Finding{Verdict: Warning, Found: fmt.Sprintf(found, values...), Fix: mend}
}

func fault(mend, found string, values ...any) Finding {
	return Finding{Verdict: Fault, Found: fmt.Sprintf(found, values...), Fix: mend}
}

func notChecked(why string, values ...any) Finding {
	return Finding{Verdict: NotChecked, Found: fmt.Sprintf(why, values...)}
}

// Check is one thing to look at.
type Check struct {
	Name string
	Run  func(ctx context.Context) Finding
}

// Examine makes all checks at the same time, each within the bound, and returns
// what they found in their order.
func RunChecks(ctx context.Context, checks []Check, bound time.Duration) []Finding {
	findings := make([]Finding, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() {
			began := time.Now()
			findings[i] = look(ctx, check, bound)
			findings[i].Check, findings[i].Duration = check.Name, time.Since(began)
		})
	}
	wg.Wait()
	return findings
}

// look makes one check. One that does not heed its context is left behind.
func look(ctx context.Context, check Check, bound time.Duration) Finding {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	found := make(chan Finding, 1)
	go func() { found <- check.Run(ctx) }()
	select {
	case f := <-found:
		return f
	case <-ctx.Done():
	}
	select {
	case f := <-found:
		return f
	case <-time.After(time.Second): // to say itself what it was waiting for
		return notChecked("it came to no end within %v", bound)
	}
}

// App is a Zoom app of the settings.
type App struct {
	Name     string
	ClientID string
	OAuthApp string // Recall's uuid of it; empty if the settings do not say
	Zoom     *zoom.Client
}

// Config is what there is to look at. What is nil or empty is not checked.
type Config struct {
	// Faults is what is wrong with the settings, a line each.
	SettingProblems []string

	Redis        *store.Connection
	Keyset       *seal.Keyset
	WaitReplicas int // of Redis, that a commit waits for

	Apps       []App
	ZoomURL    *url.URL
	Recall     *recall.Client
	RecallURL  *url.URL
	Callback   *url.URL // CALLBACK_BASE_URL
	JournalDir string

	// Certificates are files with certificates, by the settings that name them.
	Certificates []CertificateFile
	// Registrar is a connection to it.
	Registrar *grpc.ClientConn

	// HTTP makes the requests to Zoom, Recall and the callback.
	HTTP *http.Client
	// Now is this machine's clock. Nil: time.Now.
	Now func() time.Time

	store *store.Store // nil: there is no Redis
}

// Checks returns all checks.
func (c Config) Checks() []Check {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Redis != nil {
		c.store = store.New(c.Redis, c.keysetOrAny())
	}
	checks := c.settings()
	checks = append(checks, []Check{
		{"redis", c.redis},
		{"redis persistence", c.persistence},
		{"redis memory", c.memory},
		{"redis replication", c.replication},
		{"redis permissions", c.permissions},
		{"clock of redis", c.redisClock},
		{"keyset", c.keyset},
		{"processes", c.processes},
		{"grants", c.grants},
		{"renewals", c.renewals},
		{"pauses", c.pauses},
		{"journal", c.journal},
		{"clock of zoom", func(ctx context.Context) Finding { return c.httpClock(ctx, "Zoom", c.ZoomURL) }},
	}...)
	if len(c.Apps) == 0 {
		checks = append(checks, Check{"zoom app", func(context.Context) Finding {
			return notChecked("ZOOM_CLIENT_ID and ZOOM_CLIENT_SECRET, or ZOOM_APPS_FILE, are not set, or of no use")
		}})
	}
	for _, app := range c.Apps {
		checks = append(checks, Check{"zoom app " + app.Name, func(ctx context.Context) Finding { return c.zoomApp(ctx, app) }})
	}
	checks = append(checks,
		Check{"clock of recall", func(ctx context.Context) Finding { return c.httpClock(ctx, "Recall", c.RecallURL) }},
		Check{"recall key", c.recallKey},
	)
	for _, app := range c.Apps {
		checks = append(checks, Check{"recall app " + app.Name, func(ctx context.Context) Finding { return c.recallApp(ctx, app) }})
	}
	checks = append(checks, Check{"callback url", c.callback}, Check{"registrar", c.registrar})
	for _, file := range c.Certificates {
		checks = append(checks, Check{"certificate " + file.Setting, func(context.Context) Finding { return c.certificate(file) }})
	}
	return checks
}

// keysetOrAny is the keyset, or one that opens nothing, for what needs none.
func (c Config) keysetOrAny() *seal.Keyset {
	if c.Keyset != nil {
		return c.Keyset
	}
	keyset, err := seal.New()
	if err != nil {
		return &seal.Keyset{}
	}
	return keyset
}

// settings is a check for each setting that is wrong.
func (c Config) settings() (checks []Check) {
	for _, line := range c.SettingProblems {
		name, text, _ := strings.Cut(line, ": ")
		mend := "put it right: --help says what it may be"
		switch {
		case strings.Contains(text, "is required"):
			mend = "set it as the programs have it: run this where they run, or with their environment"
		case strings.Contains(text, "file cannot be read"):
			mend = "name a file that is there and can be read; in a pod, see that its Secret has the key"
		case strings.Contains(text, "is mutually exclusive"):
			mend = "take one of the two away"
		}
		checks = append(checks, Check{"setting " + name, func(context.Context) Finding { return fault(mend, "%s", text) }})
	}
	if len(checks) == 0 {
		checks = []Check{{"settings", func(context.Context) Finding { return ok("all that is set and looked at here can be read") }}}
	}
	return checks
}

// count is "1 grant" or "2 grants".
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
