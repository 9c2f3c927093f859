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
	"tokenprovider/internal/telemetry/instrument"
	"tokenprovider/internal/zoom"
	"tokenprovider/tokenserver"
)

const about = `Serves each user's Zoom access token to Recall at the user's own callback URL, and keeps all tokens fresh. Replicas share their state in Redis.`

func main() { os.Exit(app.Main("tokenserver", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c settings
	if err := config.Parse("tokenserver", about, &c, args, stdout); err != nil {
		return err
	}
	limitMemory(c.CacheSize)
	log := c.Logger(stderr)
	endTraces, err := instrument.Start(ctx, "tokenserver", config.Version())
	if err != nil {
		return err
	}
	if err := instrument.Redis(c.Connection().UniversalClient); err != nil {
		return err
	}
	apps := c.Apps(config.App{WebhookSecretToken: c.ZoomWebhookSecretToken}, c.ZoomWebhookSecretTokenFile)
	grants, responses, err := c.Open(ctx, log)
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
	c.RegisterMetrics(grants, responses, metrics)
	client, zoomMetrics := instrument.Client(app.Outbound(0)), zoom.NewMetrics(metrics)
	clocks := app.WatchClocks(&c.Zoom, grants.Health, client, log)
	renewer := renewal.New(renewal.Config{
		Store: grants, Journal: responses, Log: log.Named("renewal"), Metrics: metrics,
		SuspendReason: clocks.CheckSkew, RefreshBefore: c.RefreshBefore, MaxInFlight: c.RefreshMaxInFlight, MaxPerSecond: c.RefreshMaxPerSecond,
	})
	setApps := func(list []config.App) {
		atZoom := map[string]renewal.App{}
		for _, one := range list {
			atZoom[one.Name] = renewal.App{Zoom: app.ZoomClient(one, client, zoomMetrics), MaxPerSecond: one.MaxPerSecond}
		}
		renewer.SetApps(atZoom)
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
	cache.RegisterMetrics(metrics)
	handler := tokenserver.New(tokenserver.Config{
		Cache: cache, Tokens: renewer, Log: log.Named("callback"), Metrics: metrics,
		Verifier: c.verifier, Events: c.events(apps, grants, log, metrics), MaxWaiting: c.MaxWaiting,
	})
	refresher := &tokenserver.Refresher{Index: grants, Renewer: renewer, Log: log.Named("refresher")}
	ready := &app.Readiness{Drain: c.DrainDelay, Check: func(ctx context.Context) error {
		if err := clocks.CheckSkew(); err != nil {
			return err
		}
		if cache.HasLiveTokens() { // they are served without Redis
			return nil
		}
		return grants.Ping(ctx)
	}}
	log.Info("token server started", zap.String("version", config.Version()),
		zap.Stringer("http", public.Addr()), zap.Stringer("ops", ops.Addr()), zap.Bool("signatures", c.verifier != nil))
	if c.verifier == nil {
		log.Warn("RECALL_VERIFICATION_SECRETS not set; callbacks need no signature")
	}
	return app.Run(ctx, log, c.DrainDelay+45*time.Second,
		app.Part{Name: "traces", Stop: endTraces},
		app.Part{Name: "storage", Stop: func(context.Context) error { return c.Close(responses) }},
		app.HTTP("ops", log, ops, app.Ops(ready, metrics)),
		app.Loop("recovery", renewer.Run),
		app.Part{Name: "renewals", Stop: renewer.Close},
		app.Loop("apps", func(ctx context.Context) { apps.Follow(ctx, c.ReloadInterval, log, grants.CountByApp, setApps) }),
		app.Loop("storage secrets", func(ctx context.Context) { c.Follow(ctx, log) }),
		app.Loop("secrets", func(ctx context.Context) { secrets.Follow(ctx, c.ReloadInterval, log) }),
		app.Loop("refresher", refresher.Run),
		app.Loop("clocks", clocks.Run),
		app.Loop("heartbeat", func(ctx context.Context) { grants.RunHeartbeat(ctx, "tokenserver", config.Version()) }),
		app.Loop("changes", func(ctx context.Context) { grants.Subscribe(ctx, cache) }),
		app.HTTP("callbacks", log, public, ready.Draining(handler)),
		ready.Part(),
	)
}

// limitMemory makes garbage collections rarer, as callbacks leave few live objects, and
// limits the heap to what the cache needs. GOGC and GOMEMLIMIT override it.
func limitMemory(cacheSize int) {
	const base, record = 64 << 20, 1600 // bytes
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(base + int64(cacheSize)*record)
	}
}

// events returns the handler of Zoom's webhook, nil if it is off.
func (c *settings) events(apps *config.Apps, grants *store.Store, log *zap.Logger, metrics prometheus.Registerer) http.Handler {
	if c.ZoomAppsFile == "" && c.ZoomWebhookSecretToken.IsZero() {
		return nil
	}
	list := func() (list []tokenserver.EventsApp) {
		for _, app := range apps.List() {
			list = append(list, tokenserver.EventsApp{Name: app.Name, ClientID: app.ClientID, SecretToken: app.WebhookSecretToken})
		}
		return list
	}
	return tokenserver.NewEvents(grants, list, log.Named("events"), metrics)
}
