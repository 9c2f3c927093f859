// Command registrar is the gRPC service that registers users: a Zoom grant goes
// in, a Recall credential comes out.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/reload"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/telemetry/instrument"
	"tokenprovider/internal/zoom"
	"tokenprovider/registrar"
)

const about = `Registers users over gRPC: takes a user's Zoom grant and gives the user a credential at Recall that points at the token server. Replicas share their state in Redis.`

func main() { os.Exit(app.Main("registrar", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c settings
	if err := config.Parse("registrar", about, &c, args, stdout); err != nil {
		return err
	}
	log := c.Logger(stderr)
	endTraces, err := instrument.Start(ctx, "registrar", config.Version())
	if err != nil {
		return err
	}
	if err := instrument.Redis(c.Connection().UniversalClient); err != nil {
		return err
	}
	apps := c.Apps(config.App{OAuthApp: c.RecallOAuthAppID}, "")
	grants, responses, err := c.Open(ctx, log)
	if err != nil {
		return err
	}
	if err := apps.CheckUsers(ctx, grants.CountByApp); err != nil {
		return err
	}
	internal, err := app.Listen(ctx, "GRPC_ADDR", c.GRPCAddr)
	if err != nil {
		return err
	}
	ops, err := app.Listen(ctx, "OPS_ADDR", c.OpsAddr)
	if err != nil {
		return err
	}
	metrics := app.Metrics("registrar")
	c.RegisterMetrics(grants, responses, metrics)
	registrar.MeasureCertificates(c.certificates, metrics)
	client, zoomMetrics := instrument.Client(app.Outbound(20*time.Second)), zoom.NewMetrics(metrics)
	clocks := app.WatchClocks(&c.Zoom, grants.Health, client, log)
	renewer := renewal.New(renewal.Config{
		Store: grants, Journal: responses, Log: log.Named("renewal"), Metrics: metrics,
		SuspendReason: clocks.CheckSkew, RefreshBefore: c.RefreshBefore, MaxInFlight: c.RefreshMaxInFlight, MaxPerSecond: c.RefreshMaxPerSecond,
	})
	gate := recallvendor.Gate{Quota: grants, PerMinute: c.RecallRateLimit, Log: log.Named("recall"), Metrics: recallvendor.NewGateMetrics(metrics), MaxWait: 2 * time.Second}
	background := gate
	background.MaxWait, background.Background = 10*time.Minute, true
	recallClient := recall.New(recall.Config{
		APIURL: c.RecallAPIURL, APIKey: c.RecallAPIKey, HTTP: client, Gate: &gate, Metrics: recall.NewMetrics(metrics),
	})
	var secrets config.Secrets
	secrets.On("RECALL_API_KEY", c.RecallAPIKeyFile, func(key secret.Text) error {
		if key.IsZero() {
			return errors.New("empty")
		}
		recallClient.SetKey(key)
		return nil
	})
	reencrypter := &keyset.Reencrypter{
		Store: grants.Encryption, Keyset: c.Keyset(), Log: log.Named("keyset"),
		Wait: 12 * c.ReloadInterval, // Kubernetes takes a minute to update the file, and each process an interval to reload it
	}
	service := registrar.New(registrar.Config{
		Store: grants, Renewer: renewer, Vendor: recallvendor.New(recallClient), Log: log.Named("registrar"), Audit: c.Audit(stderr), Metrics: metrics,
		CallbackBase: c.CallbackBaseURL, OldBases: c.OldBases(),
	})
	reconciler := &registrar.Reconciler{
		Service: service, Vendor: recallvendor.New(recallClient.WithGate(&background)), Log: log.Named("reconciler"), Interval: c.ReconcileInterval,
	}
	setApps := func(list []config.App) {
		atZoom, known := map[string]renewal.App{}, map[string]registrar.App{}
		for _, one := range list {
			zoomClient := app.ZoomClient(one, client, zoomMetrics)
			atZoom[one.Name], known[one.Name] = renewal.App{Zoom: zoomClient, MaxPerSecond: one.MaxPerSecond}, registrar.App{Zoom: zoomClient, OAuthApp: one.OAuthApp}
		}
		renewer.SetApps(atZoom)
		service.SetApps(known)
	}
	setApps(apps.List())
	server, healthServer, err := registrar.NewServer(service, c.access(), append(instrument.GRPC(), c.transport())...)
	if err != nil {
		return err
	}
	ready := &app.Readiness{Check: func(ctx context.Context) error {
		return errors.Join(clocks.CheckSkew(), grants.Ping(ctx))
	}}
	log.Info("registrar started", zap.String("version", config.Version()),
		zap.Stringer("grpc", internal.Addr()), zap.Stringer("ops", ops.Addr()))
	c.logAccess(log)
	return app.Run(ctx, log, 90*time.Second,
		app.Part{Name: "traces", Stop: endTraces},
		app.Part{Name: "storage", Stop: func(context.Context) error { return c.Close(responses) }},
		app.HTTP("ops", log, ops, app.Ops(ready, metrics)),
		app.Loop("recovery", renewer.Run),
		app.Part{Name: "renewals", Stop: renewer.Close},
		app.Part{Name: "registrations", Stop: service.Close},
		app.Loop("apps", func(ctx context.Context) { apps.Follow(ctx, c.ReloadInterval, log, grants.CountByApp, setApps) }),
		app.Loop("storage secrets", func(ctx context.Context) { c.Follow(ctx, log) }),
		app.Loop("secrets", func(ctx context.Context) { secrets.Follow(ctx, c.ReloadInterval, log) }),
		app.Loop("clocks", clocks.Run),
		app.Loop("heartbeat", func(ctx context.Context) { grants.RunHeartbeat(ctx, "registrar", config.Version()) }),
		app.Loop("reencrypter", reencrypter.Run),
		app.Loop("certificates", func(ctx context.Context) { follow(ctx, c.ReloadInterval, c.certificates, log, "server's certificates") }),
		app.Loop("policy", func(ctx context.Context) { follow(ctx, c.ReloadInterval, c.policy, log, "policy") }),
		app.Loop("unfinished registrations", func(ctx context.Context) { service.RunUnfinished(ctx, 5*time.Second) }),
		app.Loop("reconciler", reconciler.Run),
		app.Loop("health", func(ctx context.Context) { reportHealth(ctx, ready, healthServer) }),
		app.GRPC("grpc", internal, server),
		app.Part{Name: "watches", Stop: func(context.Context) error { service.EndWatches(); return nil }},
		ready.Part(),
	)
}

// follow reloads a value when its files change, until ctx ends. value may be nil.
func follow[T any](ctx context.Context, every time.Duration, value *reload.Value[T], log *zap.Logger, what string) {
	if value != nil {
		value.Follow(ctx, every, log, what, nil)
	}
}

// reportHealth sets the status of the gRPC health service to the readiness, every
// second until ctx ends.
func reportHealth(ctx context.Context, ready *app.Readiness, server *health.Server) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer server.Shutdown()
	for {
		status := healthpb.HealthCheckResponse_SERVING
		if ready.Ready(ctx) != nil {
			status = healthpb.HealthCheckResponse_NOT_SERVING
		}
		server.SetServingStatus("", status)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
