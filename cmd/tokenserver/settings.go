package main

import (
	"time"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/secret"
	"tokenprovider/tokenserver"
)

// settings are the settings of the token server.
type settings struct {
	config.Program
	HTTPAddr string `name:"http-addr" env:"HTTP_ADDR" default:":8080" help:"Listen address of the public endpoint, which Recall, other bot vendors and Zoom call."`
	OpsAddr  string `env:"OPS_ADDR" default:":9090" help:"Listen address of /healthz, /readyz and /metrics. Never expose it."`
	app.Storage
	config.Zoom
	config.Renewal
	RecallVerificationSecrets     secret.Text   `env:"RECALL_VERIFICATION_SECRETS" placeholder:"SECRETS" help:"Recall's workspace verification secrets (whsec_…), comma-separated. Callbacks need a valid, fresh signature from one of them. Empty: no signature is checked."`
	RecallVerificationSecretsFile string        `env:"RECALL_VERIFICATION_SECRETS_FILE" placeholder:"FILE" help:"File with the verification secrets. Reloaded when it changes."`
	RecallVerificationRequired    bool          `env:"RECALL_VERIFICATION_REQUIRED" help:"Refusal to start without verification secrets."`
	ZoomWebhookSecretToken        secret.Text   `env:"ZOOM_WEBHOOK_SECRET_TOKEN" placeholder:"TOKEN" help:"Secret Token of the Zoom app, for Zoom's webhook at /zoom/events: users who remove the app at Zoom are removed here. Empty: the webhook returns 404."`
	ZoomWebhookSecretTokenFile    string        `env:"ZOOM_WEBHOOK_SECRET_TOKEN_FILE" placeholder:"FILE" help:"File with the Secret Token. Reloaded when it changes."`
	CacheSize                     int           `env:"CACHE_SIZE" default:"100000" help:"Maximum grants in memory, about 2 KiB each."`
	MaxWaiting                    int           `env:"MAX_WAITING" default:"1000" help:"Maximum callbacks that wait for Zoom at once. More get a 503."`
	DrainDelay                    time.Duration `env:"DRAIN_DELAY" default:"5s" help:"Time from the end of readiness to the end of callbacks at shutdown, in which load balancers remove the process. 0: none."`

	verifier *tokenserver.Verifier
}

// Check implements [config.Checker].
func (c *settings) Check(fault func(setting, text string)) {
	c.Program.Check(fault)
	c.Storage.Check(fault)
	c.Renewal.Check(fault)
	c.Zoom.Check(fault)
	c.checkVerification(fault)
	if c.ZoomAppsFile != "" && !c.ZoomWebhookSecretToken.IsZero() {
		fault("ZOOM_WEBHOOK_SECRET_TOKEN", "is mutually exclusive with ZOOM_APPS_FILE, which has one for each app")
	}
	if c.CacheSize < 1 {
		fault("CACHE_SIZE", "must be at least 1")
	}
	if c.MaxWaiting < 1 {
		fault("MAX_WAITING", "must be at least 1")
	}
	if c.DrainDelay < 0 {
		fault("DRAIN_DELAY", "must be at least 0")
	}
}

// checkVerification makes the verifier of Recall's signatures.
func (c *settings) checkVerification(fault func(setting, text string)) {
	if c.RecallVerificationSecrets.IsZero() {
		if c.RecallVerificationRequired {
			fault("RECALL_VERIFICATION_SECRETS", "is required with RECALL_VERIFICATION_REQUIRED: Recall's workspace verification secrets (whsec_…)")
		}
		return
	}
	verifier, err := tokenserver.NewVerifier(config.Split(c.RecallVerificationSecrets))
	if err != nil {
		fault("RECALL_VERIFICATION_SECRETS", err.Error())
	}
	c.verifier = verifier
}
