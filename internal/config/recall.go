package config

import (
	"net/url"
	"strings"

	"tokenprovider/internal/secret"
)

// Recall has the settings of the Recall workspace.
type Recall struct {
	RecallAPIURL       *url.URL    `name:"recall-api-url" env:"RECALL_API_URL" default:"https://us-east-1.recall.ai" help:"URL of Recall's API. Each region has its own host."`
	RecallAPIKey       secret.Text `name:"recall-api-key" env:"RECALL_API_KEY" placeholder:"KEY" needed:"an API key of the Recall workspace" help:"API key of the Recall workspace."`
	RecallAPIKeyFile   string      `name:"recall-api-key-file" env:"RECALL_API_KEY_FILE" placeholder:"FILE" help:"File with the API key. Reloaded when it changes."`
	RecallOAuthAppID   string      `name:"recall-oauth-app-id" env:"RECALL_OAUTH_APP_ID" placeholder:"UUID" help:"UUID of the Zoom OAuth app at Recall."`
	RecallRateLimit    int         `name:"recall-rate-limit" env:"RECALL_RATE_LIMIT" default:"300" help:"Maximum requests to Recall per minute, over all replicas. Recall's own limit is 300 per workspace."`
	CallbackBaseURL    *url.URL    `name:"callback-base-url" env:"CALLBACK_BASE_URL" placeholder:"URL" needed:"the public URL of the token server, as Recall reaches it" help:"Public URL of the token server, as Recall reaches it."`
	CallbackOldBaseURL string      `name:"callback-old-base-urls" env:"CALLBACK_OLD_BASE_URLS" placeholder:"URLS" help:"Earlier public URLs of the token server, comma-separated. Credentials under them at Recall are removed too."`

	oldBases []*url.URL
}

// Check implements [Checker].
func (r *Recall) Check(fault func(setting, text string)) {
	if r.RecallRateLimit < 3 {
		fault("RECALL_RATE_LIMIT", "must be at least 3")
	}
	if r.CallbackOldBaseURL == "" {
		return
	}
	for text := range strings.SplitSeq(r.CallbackOldBaseURL, ",") {
		old, err := ParseURL(strings.TrimSpace(text))
		if err != nil {
			fault("CALLBACK_OLD_BASE_URLS", "must be absolute URLs, separated by commas")
			return
		}
		r.oldBases = append(r.oldBases, old)
	}
}

// CheckApp checks that Recall's id of each Zoom app is set in one place.
func (r *Recall) CheckApp(z *Zoom, fault func(setting, text string)) {
	switch {
	case z.ZoomAppsFile == "" && r.RecallOAuthAppID == "":
		fault("RECALL_OAUTH_APP_ID", "is required: the UUID of the Zoom OAuth app at Recall")
	case z.ZoomAppsFile != "" && r.RecallOAuthAppID != "":
		fault("RECALL_OAUTH_APP_ID", "is mutually exclusive with ZOOM_APPS_FILE, which has one for each app")
	}
}

// OldBases returns the earlier public URLs of the token server.
func (r *Recall) OldBases() []*url.URL { return r.oldBases }

// Certificates has the files of the registrar's mutual TLS.
type Certificates struct {
	GRPCTLSCertFile  string `name:"grpc-tls-cert-file" env:"GRPC_TLS_CERT_FILE" placeholder:"FILE" help:"Server certificate with its chain, in PEM. Reloaded when it changes, as the other files are."`
	GRPCTLSKeyFile   string `name:"grpc-tls-key-file" env:"GRPC_TLS_KEY_FILE" placeholder:"FILE" help:"Private key of the server certificate, in PEM."`
	GRPCClientCAFile string `name:"grpc-client-ca-file" env:"GRPC_CLIENT_CA_FILE" placeholder:"FILE" help:"Certificate authorities of the clients, in PEM. Clients without a certificate from one of them are rejected."`
}
