// Package doctor checks a deployment from outside. Each check reports a verdict, what
// it found, and for a fault the fix, in words for an operator on call.
//
// A check makes no lasting change, spends no token, and creates nothing at Recall. All
// checks run concurrently, each with a timeout. [Config.Checks] lists them; each file
// has the checks of one component.
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

// Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	OK         Verdict = "ok"
	Warning    Verdict = "warning"     // works, but must be corrected
	Fault      Verdict = "fault"       // affects users, or will
	NotChecked Verdict = "not_checked" // unknown; Found has the cause
)

// Finding is the outcome of a check.
type Finding struct {
	Check    string
	Verdict  Verdict
	Found    string // human-readable, without secrets
	Fix      string // advice; set for a Warning and a Fault only
	Duration time.Duration
}

func ok(found string, values ...any) Finding {
	return Finding{Verdict: OK, Found: fmt.Sprintf(found, values...)}
}

func warning(fix, found string, values ...any) Finding {
	return Finding{Verdict: Warning, Found: fmt.Sprintf(found, values...), Fix: fix}
}

func fault(fix, found string, values ...any) Finding {
	return Finding{Verdict: Fault, Found: fmt.Sprintf(found, values...), Fix: fix}
}

func notChecked(found string, values ...any) Finding {
	return Finding{Verdict: NotChecked, Found: fmt.Sprintf(found, values...)}
}

// Check is a check by its name.
type Check struct {
	Name string
	Run  func(ctx context.Context) Finding
}

// RunChecks runs all checks concurrently, each with the timeout, and returns their
// findings in the order of the checks.
func RunChecks(ctx context.Context, checks []Check, timeout time.Duration) []Finding {
	findings := make([]Finding, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() {
			start := time.Now()
			findings[i] = runCheck(ctx, check, timeout)
			findings[i].Check, findings[i].Duration = check.Name, time.Since(start)
		})
	}
	wg.Wait()
	return findings
}

// runCheck runs a check. It returns without waiting for a check that ignores its
// context.
func runCheck(ctx context.Context, check Check, timeout time.Duration) Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
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
	case <-time.After(time.Second): // the check may still return what it waited for
		return notChecked("no result within %v", timeout)
	}
}

// App is a Zoom app of the settings.
type App struct {
	Name     string
	ClientID string
	OAuthApp string // its uuid at Recall; empty if not set
	Zoom     *zoom.Client
}

// Config has what is checked. A component that is nil or empty is not checked.
type Config struct {
	// SettingProblems lists the invalid settings, each as "NAME: problem".
	SettingProblems []string

	Redis        *store.Connection
	Keyset       *seal.Keyset
	WaitReplicas int // number of replicas that a commit waits for

	Apps       []App
	ZoomURL    *url.URL
	Recall     *recall.Client
	RecallURL  *url.URL
	Callback   *url.URL // CALLBACK_BASE_URL
	JournalDir string

	Certificates []CertificateFile
	Registrar    *grpc.ClientConn

	// HTTP makes the requests to Zoom, Recall and the callback.
	HTTP *http.Client
	// Now returns the time of this machine's clock. Nil: time.Now.
	Now func() time.Time

	store *store.Store // nil without Redis
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
			return notChecked("ZOOM_CLIENT_ID and ZOOM_CLIENT_SECRET, or ZOOM_APPS_FILE, are not set, or invalid")
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

// keysetOrAny returns the keyset, or an empty one for checks that decrypt nothing.
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

// settings returns a check for each invalid setting, or one if all are valid.
func (c Config) settings() (checks []Check) {
	for _, line := range c.SettingProblems {
		name, text, _ := strings.Cut(line, ": ")
		fix := "correct it; --help lists the valid values"
		switch {
		case strings.Contains(text, "is required"):
			fix = "set it: run doctor where the program runs, or with its environment"
		case strings.Contains(text, "file cannot be read"):
			fix = "name an existing, readable file; in a pod, check that its Secret has the key"
		case strings.Contains(text, "is mutually exclusive"):
			fix = "unset one of the two"
		}
		checks = append(checks, Check{"setting " + name, func(context.Context) Finding { return fault(fix, "%s", text) }})
	}
	if len(checks) == 0 {
		checks = []Check{{"settings", func(context.Context) Finding { return ok("all settings checked here are valid") }}}
	}
	return checks
}

// count returns "1 grant" or "2 grants".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
