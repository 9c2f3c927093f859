package config

import (
	"net/url"
	"strings"

	"tokenprovider/internal/secret"
)

// Recall is the Recall workspace, and what it knows of us.
type Recall struct {
	RecallAPIURL       *url.URL    `name:"recall-api-url" env:"RECALL_API_URL" default:"https://us-east-1.recall.ai" help:"Recall's API; each region has its own host."`
	RecallAPIKey       secret.Text `name:"recall-api-key" env:"RECALL_API_KEY" placeholder:"KEY" needed:"an API key of the Recall workspace" help:"API key of the Recall workspace."`
	RecallAPIKeyFile   string      `name:"recall-api-key-file" env:"RECALL_API_KEY_FILE" placeholder:"FILE" help:"File that holds the API key."`
	RecallOAuthAppID   string      `name:"recall-oauth-app-id" env:"RECALL_OAUTH_APP_ID" placeholder:"UUID" help:"Recall's uuid of the Zoom OAuth app."`
	RecallRateLimit    int         `name:"recall-rate-limit" env:"RECALL_RATE_LIMIT" default:"300" help:"Requests to Recall a minute, at most, by all replicas together. Recall's own limit for a workspace is 300."`
	CallbackBaseURL    *url.URL    `name:"callback-base-url" env:"CALLBACK_BASE_URL" placeholder:"URL" needed:"the public URL of the token server, as Recall reaches it" help:"Public URL of the token server, as Recall reaches it."`
	CallbackOldBaseURL string      `name:"callback-old-base-urls" env:"CALLBACK_OLD_BASE_URLS" placeholder:"URLS" help:"Public URLs that the token server had before, separated by commas: what is left under them at Recall is removed, too."`

	oldBases []*url.URL
}

// Check implements [Checker].
func (r *Recall) Check(fault func(setting, text string)) {
	if r.RecallRateLimit < 3 {
		fault("RECALL_RATE_LIMIT", "less than 3")
	}
	if r.CallbackOldBaseURL == "" {
		return
	}
	for text := range strings.SplitSeq(r.CallbackOldBaseURL, ",") {
		old, err := ParseURL(strings.TrimSpace(text))
		if err != nil {
			fault("CALLBACK_OLD_BASE_URLS", "not absolute URLs, separated by commas")
			return
		}
		r.oldBases = append(r.oldBases, old)
	}
}

// CheckApp makes sure that it is said once what Recall calls each Zoom app.
func (r *Recall) CheckApp(z *Zoom, fault func(setting, text string)) {
	switch {
	case z.ZoomAppsFile == "" && r.RecallOAuthAppID == "":
		fault("RECALL_OAUTH_APP_ID", "not set: the uuid that Recall gave to the Zoom OAuth app")
	case z.ZoomAppsFile != "" && r.RecallOAuthAppID != "":
		fault("RECALL_OAUTH_APP_ID", "set besides ZOOM_APPS_FILE, which has one for each app: choose one")
	}
}

// OldBases returns the public URLs that the token server had before.
func (r *Recall) OldBases() []*url.URL { return r.oldBases }

// Certificates are the files that the registrar's gRPC server shows itself by, and
// knows its clients by.
type Certificates struct {
	GRPCTLSCertFile  string `name:"grpc-tls-cert-file" env:"GRPC_TLS_CERT_FILE" placeholder:"FILE" help:"The server's certificate and its chain, in PEM. Like the other files, it is read again when it changes."`
	GRPCTLSKeyFile   string `name:"grpc-tls-key-file" env:"GRPC_TLS_KEY_FILE" placeholder:"FILE" help:"The certificate's key, in PEM."`
	GRPCClientCAFile string `name:"grpc-client-ca-file" env:"GRPC_CLIENT_CA_FILE" placeholder:"FILE" help:"The authorities that vouch for clients, in PEM. A client without a certificate of theirs is not let in."`
}
