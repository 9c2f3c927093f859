// Command tokenserver serves access tokens at the callback URLs and keeps every
// grant's token fresh.
package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/lifecycle"
	"tokenprovider/internal/rotation"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/settings"
	"tokenprovider/tokenserver"
)

const about = `Serves each user's Zoom access token to Recall at the user's own callback URL, and keeps all tokens fresh. Run as many replicas as you like: they meet in Redis.`

// config is the settings of the token server.
type config struct {
	settings.Program
	HTTPAddr string `name:"http-addr" env:"HTTP_ADDR" default:":8080" help:"Where the public side listens, which Recall calls."`
	OpsAddr  string `env:"OPS_ADDR" default:":9090" help:"Where /healthz, /readyz and /metrics are. Never expose it."`
	settings.Storage
	settings.Zoom
	settings.Refreshing
	RecallVerificationSecrets     secret.Text `env:"RECALL_VERIFICATION_SECRETS" placeholder:"SECRETS" help:"Recall's workspace verification secrets (whsec_…), separated by commas. If set, a callback without a valid, fresh signature by one of them is refused."`
	RecallVerificationSecretsFile string      `env:"RECALL_VERIFICATION_SECRETS_FILE" placeholder:"FILE" help:"File that holds the verification secrets."`

	verifier *tokenserver.Verifier
}

// Check implements [settings.Checker].
func (c *config) Check(fault func(setting, text string)) {
	c.Program.Check(fault)
	c.Storage.Check(fault)
	c.Refreshing.Check(fault)
	settings.NotYet(fault, "ZOOM_WEBHOOK_SECRET_TOKEN", "ZOOM_WEBHOOK_SECRET_TOKEN_FILE", "ZOOM_APPS_FILE")
	if !c.RecallVerificationSecrets.IsZero() {
		var secrets []secret.Text
		for text := range strings.SplitSeq(c.RecallVerificationSecrets.Reveal(), ",") {
			secrets = append(secrets, secret.New(strings.TrimSpace(text)))
		}
		verifier, err := tokenserver.NewVerifier(secrets)
		if err != nil {
			fault("RECALL_VERIFICATION_SECRETS", err.Error())
		}
		c.verifier = verifier
	}
}

func main() { os.Exit(lifecycle.Main("tokenserver", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c config
	if err := settings.Parse("tokenserver", about, &c, args, stdout); err != nil {
		return err
	}
	log := c.Logger(stderr)
	grants, kept, err := c.Open(ctx, log)
	if err != nil {
		return err
	}
	public, err := lifecycle.Listen(ctx, "HTTP_ADDR", c.HTTPAddr)
	if err != nil {
		return err
	}
	ops, err := lifecycle.Listen(ctx, "OPS_ADDR", c.OpsAddr)
	if err != nil {
		return err
	}
	metrics := lifecycle.Metrics()
	rotator := rotation.New(rotation.Config{
		Store: grants, Journal: kept, Log: log.Named("rotation"), Metrics: metrics,
		RefreshBefore: c.RefreshBefore, MaxInFlight: c.RefreshMaxInFlight, MaxPerSecond: c.RefreshMaxPerSecond,
		Apps: map[string]rotation.Zoom{settings.DefaultApp: c.Client(&http.Client{})},
	})
	handler := tokenserver.New(tokenserver.Config{
		Grants: grants, HandOuter: rotator, Log: log.Named("callback"), Metrics: metrics, Verifier: c.verifier,
	})
	refresher := &tokenserver.Refresher{Index: grants, Renewer: rotator, Log: log.Named("refresher")}
	ready := &lifecycle.Readiness{Check: grants.Ping}
	log.Info("token server started", zap.String("version", settings.Version()),
		zap.Stringer("http", public.Addr()), zap.Stringer("ops", ops.Addr()), zap.Bool("signatures", c.verifier != nil))
	if c.verifier == nil {
		log.Warn("callbacks need no signature: set RECALL_VERIFICATION_SECRETS")
	}
	return lifecycle.Run(ctx, log, 45*time.Second,
		lifecycle.Part{Name: "storage", Stop: func(context.Context) error { return c.Close(kept) }},
		lifecycle.HTTP("ops", ops, lifecycle.Ops(ready, metrics)),
		lifecycle.Loop("recovery", rotator.Run),
		lifecycle.Part{Name: "renewals", Stop: rotator.Close},
		lifecycle.Loop("refresher", refresher.Run),
		lifecycle.HTTP("callbacks", public, handler),
		ready.Part(),
	)
}
