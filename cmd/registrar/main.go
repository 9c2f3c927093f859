// Command registrar is the gRPC service that registers users: a Zoom grant goes
// in, a Recall credential comes out.
package main

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"tokenprovider/internal/lifecycle"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/rotation"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/settings"
	"tokenprovider/registrar"
)

const about = `Registers users over gRPC: takes a user's Zoom grant and gives the user a credential at Recall that points at the token server. Run as many replicas as you like: they meet in Redis.`

// config is the settings of the registrar.
type config struct {
	settings.Program
	GRPCAddr     string `name:"grpc-addr" env:"GRPC_ADDR" default:":8443" help:"Where internal services call."`
	OpsAddr      string `env:"OPS_ADDR" default:":9090" help:"Where /healthz, /readyz and /metrics are. Never expose it."`
	GRPCInsecure bool   `name:"grpc-insecure" env:"GRPC_INSECURE" help:"Serve gRPC in plaintext, without knowing who calls."`
	settings.Storage
	settings.Zoom
	settings.Refreshing
	RecallAPIURL     *url.URL    `name:"recall-api-url" env:"RECALL_API_URL" default:"https://us-east-1.recall.ai" help:"Recall's API; each region has its own host."`
	RecallAPIKey     secret.Text `name:"recall-api-key" env:"RECALL_API_KEY" placeholder:"KEY" needed:"an API key of the Recall workspace" help:"API key of the Recall workspace."`
	RecallAPIKeyFile string      `name:"recall-api-key-file" env:"RECALL_API_KEY_FILE" placeholder:"FILE" help:"File that holds the API key."`
	RecallOAuthAppID string      `name:"recall-oauth-app-id" env:"RECALL_OAUTH_APP_ID" placeholder:"UUID" needed:"the uuid that Recall gave to the Zoom OAuth app" help:"Recall's uuid of the Zoom OAuth app."`
	CallbackBaseURL  *url.URL    `name:"callback-base-url" env:"CALLBACK_BASE_URL" placeholder:"URL" needed:"the public URL of the token server, as Recall reaches it" help:"Public URL of the token server, as Recall reaches it."`
}

// Check implements [settings.Checker].
func (c *config) Check(fault func(setting, text string)) {
	c.Program.Check(fault)
	c.Storage.Check(fault)
	c.Refreshing.Check(fault)
	settings.NotYet(fault, "ZOOM_APPS_FILE", "RECALL_RATE_LIMIT", "GRPC_POLICY_FILE",
		"GRPC_TLS_CERT_FILE", "GRPC_TLS_KEY_FILE", "GRPC_CLIENT_CA_FILE")
	if !c.GRPCInsecure {
		fault("GRPC_INSECURE", "not true: this version serves plaintext only, so it has to be asked for")
	}
}

func main() { os.Exit(lifecycle.Main("registrar", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c config
	if err := settings.Parse("registrar", about, &c, args, stdout); err != nil {
		return err
	}
	log := c.Logger(stderr)
	grants, kept, err := c.Open(ctx, log)
	if err != nil {
		return err
	}
	internal, err := lifecycle.Listen(ctx, "GRPC_ADDR", c.GRPCAddr)
	if err != nil {
		return err
	}
	ops, err := lifecycle.Listen(ctx, "OPS_ADDR", c.OpsAddr)
	if err != nil {
		return err
	}
	metrics := lifecycle.Metrics()
	client := &http.Client{Timeout: 20 * time.Second}
	zoomClient := c.Client(client)
	rotator := rotation.New(rotation.Config{
		Store: grants, Journal: kept, Log: log.Named("rotation"), Metrics: metrics,
		RefreshBefore: c.RefreshBefore, MaxInFlight: c.RefreshMaxInFlight, MaxPerSecond: c.RefreshMaxPerSecond,
		Apps: map[string]rotation.Zoom{settings.DefaultApp: zoomClient},
	})
	service := registrar.New(registrar.Config{
		Store: grants, Rotator: rotator, Log: log.Named("registrar"), CallbackBase: c.CallbackBaseURL,
		Apps:   map[string]registrar.App{settings.DefaultApp: {Zoom: zoomClient, OAuthApp: c.RecallOAuthAppID}},
		Recall: recall.New(recall.Config{APIURL: c.RecallAPIURL, APIKey: c.RecallAPIKey, HTTP: client}),
	})
	server, healthServer, err := registrar.NewServer(service)
	if err != nil {
		return err
	}
	ready := &lifecycle.Readiness{Check: grants.Ping}
	log.Info("registrar started", zap.String("version", settings.Version()),
		zap.Stringer("grpc", internal.Addr()), zap.Stringer("ops", ops.Addr()))
	log.Warn("gRPC is served in plaintext, to anybody who can connect (GRPC_INSECURE)")
	return lifecycle.Run(ctx, log, 90*time.Second,
		lifecycle.Part{Name: "storage", Stop: func(context.Context) error { return c.Close(kept) }},
		lifecycle.HTTP("ops", log, ops, lifecycle.Ops(ready, metrics)),
		lifecycle.Loop("recovery", rotator.Run),
		lifecycle.Part{Name: "renewals", Stop: rotator.Close},
		lifecycle.Part{Name: "registrations", Stop: service.Close},
		lifecycle.Loop("finisher", func(ctx context.Context) { service.Finish(ctx, 15*time.Second) }),
		lifecycle.Loop("health", func(ctx context.Context) { tellHealth(ctx, ready, healthServer) }),
		lifecycle.GRPC("grpc", internal, server),
		ready.Part(),
	)
}

// tellHealth keeps the gRPC health service in step with the readiness.
func tellHealth(ctx context.Context, ready *lifecycle.Readiness, server *health.Server) {
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
