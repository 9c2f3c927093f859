// Command tokenserver serves access tokens at the callback URLs and keeps every
// grant's token fresh.
package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/telemetry"
	"tokenprovider/internal/zoom"
	"tokenprovider/tokenserver"
)

const about = `Serves each user's Zoom access token to Recall at the user's own callback URL, and keeps all tokens fresh. Run as many replicas as you like: they meet in Redis.`

// settings are the settings of the token server.
type settings struct {
	config.Program
	HTTPAddr string `name:"http-addr" env:"HTTP_ADDR" default:":8080" help:"Where the public side listens, which Recall calls."`
	OpsAddr  string `env:"OPS_ADDR" default:":9090" help:"Where /healthz, /readyz and /metrics are. Never expose it."`
	config.Storage
	config.Zoom
	config.Renewal
	RecallVerificationSecrets     secret.Text   `env:"RECALL_VERIFICATION_SECRETS" placeholder:"SECRETS" help:"Recall's workspace verification secrets (whsec_…), separated by commas. If set, a callback without a valid, fresh signature by one of them is refused."`
	RecallVerificationSecretsFile string        `env:"RECALL_VERIFICATION_SECRETS_FILE" placeholder:"FILE" help:"File that holds the verification secrets."`
	RecallVerificationRequired    bool          `env:"RECALL_VERIFICATION_REQUIRED" help:"Do not start without verification secrets."`
	ZoomWebhookSecretToken        secret.Text   `env:"ZOOM_WEBHOOK_SECRET_TOKEN" placeholder:"TOKEN" help:"The Zoom app's Secret Token. If set, Zoom's webhook is taken at /zoom/events: a user who removes the app at Zoom is removed here."`
	ZoomWebhookSecretTokenFile    string        `env:"ZOOM_WEBHOOK_SECRET_TOKEN_FILE" placeholder:"FILE" help:"File that holds the Secret Token."`
	CacheSize                     int           `env:"CACHE_SIZE" default:"100000" help:"Credentials kept in memory, at most; each takes about 2 KiB."`
	MaxWaiting                    int           `env:"MAX_WAITING" default:"1000" help:"Callbacks that may wait for Zoom at once; more are answered 503."`
	DrainDelay                    time.Duration `env:"DRAIN_DELAY" default:"5s" help:"How long callbacks are still taken at a stop, once /readyz says no: time for load balancers to see it."`

	verifier *tokenserver.Verifier
}

// Check implements [config.Checker].
func (c *settings) Check(fault func(setting, text string)) {
	c.Program.Check(fault)
	c.Storage.Check(fault)
	c.Renewal.Check(fault)
	c.Zoom.Check(fault)
	if c.ZoomAppsFile != "" && !c.ZoomWebhookSecretToken.IsZero() {
		fault("ZOOM_WEBHOOK_SECRET_TOKEN", "set besides ZOOM_APPS_FILE, which has one for each app: choose one")
	}
	if !c.RecallVerificationSecrets.IsZero() {
		verifier, err := tokenserver.NewVerifier(config.Split(c.RecallVerificationSecrets))
		if err != nil {
			fault("RECALL_VERIFICATION_SECRETS", err.Error())
		}
		c.verifier = verifier
	} else if c.RecallVerificationRequired {
		fault("RECALL_VERIFICATION_SECRETS", "not set, though RECALL_VERIFICATION_REQUIRED is: Recall's workspace verification secrets (whsec_…)")
	}
	if c.CacheSize < 1 {
		fault("CACHE_SIZE", "less than 1")
	}
	if c.MaxWaiting < 1 {
		fault("MAX_WAITING", "less than 1")
	}
	if c.DrainDelay < 0 {
		fault("DRAIN_DELAY", "less than 0")
	}
}

func main() { os.Exit(app.Main("tokenserver", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c settings
	if err := config.Parse("tokenserver", about, &c, args, stdout); err != nil {
		return err
	}
	boundMemory(c.CacheSize)
	log := c.Logger(stderr)
	endTraces, err := telemetry.Start(ctx, "tokenserver", config.Version())
	if err != nil {
		return err
	}
	apps := c.Apps(config.App{WebhookSecretToken: c.ZoomWebhookSecretToken}, c.ZoomWebhookSecretTokenFile)
	grants, kept, err := c.Open(ctx, log)
	if err != nil {
		return err
	}
	if err := apps.CheckUsers(ctx, grants.CountByApp); err != nil {
		return err
	}
	public, err := app.Listen(ctx, "HTTP_ADDR", c.HTTPAddr)
	if err != nil {
		return err
	}
	ops, err := app.Listen(ctx, "OPS_ADDR", c.OpsAddr)
	if err != nil {
		return err
	}
	metrics := app.Metrics("tokenserver")
	c.RegisterMetrics(grants, kept, metrics)
	client, zoomMetrics := app.Outbound(0), zoom.NewMetrics(metrics)
	clocks := c.Clocks(grants, client, log)
	rotator := renewal.New(renewal.Config{
		Store: grants, Journal: kept, Log: log.Named("rotation"), Metrics: metrics,
		SuspendReason: clocks.CheckSkew, RefreshBefore: c.RefreshBefore, MaxInFlight: c.RefreshMaxInFlight, MaxPerSecond: c.RefreshMaxPerSecond,
	})
	setApps := func(list []config.App) {
		atZoom := map[string]renewal.Zoom{}
		for _, app := range list {
			atZoom[app.Name] = c.Client(app, client, zoomMetrics)
		}
		rotator.SetApps(atZoom)
	}
	setApps(apps.List())
	var secrets config.Secrets
	if c.verifier != nil {
		secrets.On("RECALL_VERIFICATION_SECRETS", c.RecallVerificationSecretsFile, func(text secret.Text) error {
			return c.verifier.SetSecrets(config.Split(text))
		})
	}
	cache, err := tokenserver.NewCache(grants, c.CacheSize, log.Named("cache"))
	if err != nil {
		return err
	}
	cache.Measure(metrics)
	handler := tokenserver.New(tokenserver.Config{
		Cache: cache, Tokens: rotator, Log: log.Named("callback"), Metrics: metrics,
		Verifier: c.verifier, Events: c.events(apps, grants, log, metrics), MaxWaiting: c.MaxWaiting,
	})
	refresher := &tokenserver.Refresher{Index: grants, Renewer: rotator, Log: log.Named("refresher")}
	ready := &app.Readiness{Drain: c.DrainDelay, Check: func(ctx context.Context) error {
		if err := clocks.CheckSkew(); err != nil {
			return err
		}
		if cache.HasLiveTokens() { // what is in memory can be served whether Redis is there or not
			return nil
		}
		return grants.Ping(ctx)
	}}
	log.Info("token server started", zap.String("version", config.Version()),
		zap.Stringer("http", public.Addr()), zap.Stringer("ops", ops.Addr()), zap.Bool("signatures", c.verifier != nil))
	if c.verifier == nil {
		log.Warn("callbacks need no signature: set RECALL_VERIFICATION_SECRETS")
	}
	return app.Run(ctx, log, c.DrainDelay+45*time.Second,
		app.Part{Name: "traces", Stop: endTraces},
		app.Part{Name: "storage", Stop: func(context.Context) error { return c.Close(kept) }},
		app.HTTP("ops", log, ops, app.Ops(ready, metrics)),
		app.Loop("recovery", rotator.Run),
		app.Part{Name: "renewals", Stop: rotator.Close},
		app.Loop("apps", func(ctx context.Context) { apps.Follow(ctx, c.ReloadInterval, log, grants.CountByApp, setApps) }),
		app.Loop("storage's secrets", func(ctx context.Context) { c.Follow(ctx, log) }),
		app.Loop("secrets", func(ctx context.Context) { secrets.Follow(ctx, c.ReloadInterval, log) }),
		app.Loop("refresher", refresher.Run),
		app.Loop("clocks", clocks.Run),
		app.Loop("attendance", func(ctx context.Context) { grants.Heartbeat(ctx, "tokenserver", config.Version()) }),
		app.Loop("changes", func(ctx context.Context) { grants.Subscribe(ctx, cache) }),
		app.HTTP("callbacks", log, public, ready.Draining(handler)),
		ready.Part(),
	)
}

// boundMemory lets the heap grow before it is collected, as most of what a
// callback leaves behind is garbage at once, and bounds it by what the cache may
// hold. The operator's own GOGC and GOMEMLIMIT win.
func boundMemory(cacheSize int) {
	const base, credential = 64 << 20, 1600 // bytes
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(base + int64(cacheSize)*credential)
	}
}

// events is the handler of Zoom's webhook, or nil.
func (c *settings) events(apps *config.Apps, grants *store.Store, log *zap.Logger, metrics prometheus.Registerer) http.Handler {
	if c.ZoomAppsFile == "" && c.ZoomWebhookSecretToken.IsZero() {
		return nil
	}
	list := func() (list []tokenserver.App) {
		for _, app := range apps.List() {
			list = append(list, tokenserver.App{Name: app.Name, ClientID: app.ClientID, SecretToken: app.WebhookSecretToken})
		}
		return list
	}
	return tokenserver.NewEvents(grants, list, log.Named("events"), metrics)
}
