package config

import (
	"net/url"
	"strings"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
)

// DefaultApp is the name of the Zoom app if there is only one.
const DefaultApp = "default"

// Zoom has the settings of the Zoom OAuth app, or of several.
type Zoom struct {
	ZoomClientID         string      `env:"ZOOM_CLIENT_ID" placeholder:"ID" help:"Client id of the Zoom OAuth app."`
	ZoomClientSecret     secret.Text `env:"ZOOM_CLIENT_SECRET" placeholder:"SECRET" help:"Client secret of the Zoom OAuth app, or two, comma-separated, while it is replaced."`
	ZoomClientSecretFile string      `env:"ZOOM_CLIENT_SECRET_FILE" placeholder:"FILE" help:"File with the client secret. Reloaded when it changes, as the files of other secrets are."`
	ZoomAppsFile         string      `env:"ZOOM_APPS_FILE" placeholder:"FILE" help:"YAML file with several Zoom apps, in place of the settings of one. Reloaded when it changes."`
	ZoomOAuthURL         *url.URL    `name:"zoom-oauth-url" env:"ZOOM_OAUTH_URL" default:"https://zoom.us" help:"URL of Zoom's OAuth endpoints."`
	ZoomAPIURL           *url.URL    `name:"zoom-api-url" env:"ZOOM_API_URL" default:"https://api.zoom.us" help:"URL of Zoom's API."`

	file *reload.Value[appsFile]
}

// App is a Zoom OAuth app.
type App struct {
	Name               string // as in the API's zoom_app
	ClientID           string
	ClientSecret       secret.Text
	WebhookSecretToken secret.Text // empty: Zoom's events are rejected
	OAuthApp           string      // Recall's UUID of the app; only the registrar needs it
	OAuthURL           *url.URL    // base of Zoom's OAuth endpoints
	APIURL             *url.URL    // base of Zoom's API
	MaxPerSecond       int         // renewals started per second and process; 0: REFRESH_MAX_PER_SECOND
}

// Check implements [Checker].
func (z *Zoom) Check(fault func(setting, text string)) {
	if z.ZoomAppsFile == "" {
		if z.ZoomClientID == "" {
			fault("ZOOM_CLIENT_ID", "is required: the client id of the Zoom OAuth app; or name several apps in ZOOM_APPS_FILE")
		}
		if z.ZoomClientSecret.IsZero() {
			fault("ZOOM_CLIENT_SECRET", "is required: the client secret of the Zoom OAuth app; or name a file in ZOOM_CLIENT_SECRET_FILE")
		}
		return
	}
	if z.ZoomClientID != "" || !z.ZoomClientSecret.IsZero() {
		fault("ZOOM_APPS_FILE", "is mutually exclusive with ZOOM_CLIENT_ID and ZOOM_CLIENT_SECRET")
		return
	}
	defaults := App{OAuthURL: z.ZoomOAuthURL, APIURL: z.ZoomAPIURL}
	file, err := reload.New(func(read reload.Read) (appsFile, error) { return readApps(z.ZoomAppsFile, defaults, read) })
	if err != nil {
		fault("ZOOM_APPS_FILE", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	z.file = file
}

// Apps returns the configured Zoom apps. If there is only one, only has the
// settings that Zoom does not have: webhook secret token and Recall's UUID.
// webhookFile is the file of the secret token; empty: there is none.
func (z *Zoom) Apps(only App, webhookFile string) *Apps {
	apps := &Apps{file: z.file, clientFile: z.ZoomClientSecretFile, webhookFile: webhookFile}
	if z.file == nil {
		only.Name, only.ClientID, only.ClientSecret = DefaultApp, z.ZoomClientID, z.ZoomClientSecret
		only.OAuthURL, only.APIURL = z.ZoomOAuthURL, z.ZoomAPIURL
		apps.current.Store(&[]App{only})
		return apps
	}
	list := z.file.Get().apps
	apps.current.Store(&list)
	return apps
}
