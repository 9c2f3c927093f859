package config

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/clock"
	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// Zoom is the Zoom OAuth app, or several of them.
type Zoom struct {
	ZoomClientID         string      `env:"ZOOM_CLIENT_ID" placeholder:"ID" help:"Client id of the Zoom OAuth app."`
	ZoomClientSecret     secret.Text `env:"ZOOM_CLIENT_SECRET" placeholder:"SECRET" help:"Its client secret; or two, separated by a comma, of which Zoom takes one."`
	ZoomClientSecretFile string      `env:"ZOOM_CLIENT_SECRET_FILE" placeholder:"FILE" help:"File that holds the client secret. Like the files of other secrets, it is read again when it changes."`
	ZoomAppsFile         string      `env:"ZOOM_APPS_FILE" placeholder:"FILE" help:"Several Zoom apps, in YAML, in place of the settings of one. It is read again when it changes."`
	ZoomOAuthURL         *url.URL    `name:"zoom-oauth-url" env:"ZOOM_OAUTH_URL" default:"https://zoom.us" help:"Where Zoom's OAuth endpoints are."`
	ZoomAPIURL           *url.URL    `name:"zoom-api-url" env:"ZOOM_API_URL" default:"https://api.zoom.us" help:"Where Zoom's API is."`

	file *reload.Value[appsFile]
}

// Clocks returns what watches this machine's clock, by Redis's and Zoom's.
func (z *Zoom) Clocks(grants *store.Store, client *http.Client, log *zap.Logger) *clock.Monitor {
	atZoom := func(ctx context.Context) (time.Time, error) { return clock.ServerTime(ctx, client, z.ZoomOAuthURL) }
	return &clock.Monitor{Redis: grants.Now, Zoom: atZoom, Log: log.Named("clock")}
}

// App is a Zoom OAuth app.
type App struct {
	Name               string // as in the API's zoom_app
	ClientID           string
	ClientSecret       secret.Text
	WebhookSecretToken secret.Text // empty: no events are taken from Zoom
	OAuthApp           string      // Recall's uuid of the app; only the registrar needs it
}

// Check implements [Checker].
func (z *Zoom) Check(fault func(setting, text string)) {
	if z.ZoomAppsFile == "" {
		if z.ZoomClientID == "" {
			fault("ZOOM_CLIENT_ID", "not set: the client id of the Zoom OAuth app; or name several apps in ZOOM_APPS_FILE")
		}
		if z.ZoomClientSecret.IsZero() {
			fault("ZOOM_CLIENT_SECRET", "not set: the client secret of the Zoom OAuth app; or name a file in ZOOM_CLIENT_SECRET_FILE")
		}
		return
	}
	if z.ZoomClientID != "" || !z.ZoomClientSecret.IsZero() {
		fault("ZOOM_APPS_FILE", "set besides ZOOM_CLIENT_ID or ZOOM_CLIENT_SECRET: choose one")
		return
	}
	file, err := reload.New(func(read reload.Read) (appsFile, error) { return readApps(z.ZoomAppsFile, read) })
	if err != nil {
		fault("ZOOM_APPS_FILE", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	z.file = file
}

// Client returns a client for an app, which m measures.
func (z *Zoom) Client(a App, c *http.Client, m *zoom.Metrics) *zoom.Client {
	return zoom.New(zoom.Config{
		ClientID: a.ClientID, ClientSecret: a.ClientSecret,
		OAuthURL: z.ZoomOAuthURL, APIURL: z.ZoomAPIURL, HTTP: c, Metrics: m, App: a.Name,
	})
}

// Apps returns the Zoom apps of the settings. Where there is only one, only has
// what the program knows of it besides client id and secret.
//
// Its secrets are taken again when their files change: that of the client, and
// that of the webhook, whose file the program names.
func (z *Zoom) Apps(only App, webhookFile string) *Apps {
	apps := &Apps{file: z.file, clientFile: z.ZoomClientSecretFile, webhookFile: webhookFile}
	if z.file == nil {
		only.Name, only.ClientID, only.ClientSecret = DefaultApp, z.ZoomClientID, z.ZoomClientSecret
		apps.current.Store(&[]App{only})
		return apps
	}
	list := z.file.Get().apps
	apps.current.Store(&list)
	return apps
}

// Apps is the Zoom apps there are. It is safe for concurrent use.
type Apps struct {
	file    *reload.Value[appsFile] // nil: one app
	current atomic.Pointer[[]App]

	clientFile, webhookFile string // of the one app; may be empty
}

// List returns the apps as they are now.
func (a *Apps) List() []App { return *a.current.Load() }

// Users counts the users of each Zoom app; see [store.Store.CountByApp].
type Users func(ctx context.Context) (map[string]int, error)

// CheckUsers makes sure that no user belongs to an app that the settings do not
// know. It answers [Faults] if one does: an app that still has users cannot be
// removed by accident.
func (a *Apps) CheckUsers(ctx context.Context, users Users) error {
	counts, err := users(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, app := range a.List() {
		known[app.Name] = true
	}
	var removed []string
	if a.file != nil {
		removed = a.file.Get().removed
	}
	var faults Faults
	for app, n := range counts {
		if !known[app] && !slices.Contains(removed, app) {
			faults = append(faults, fmt.Sprintf("ZOOM_APPS_FILE: the Zoom app %q is missing and still has %d users: "+
				"put it back and deregister them, or give them up by naming it under removed", app, n))
		}
	}
	if len(faults) > 0 {
		slices.Sort(faults)
		return faults
	}
	return nil
}

// Follow keeps the apps in step with their file until ctx ends, and calls changed
// with the list after each change. An app that is missing in the file but has
// users stays, unless the file names it under removed.
func (a *Apps) Follow(ctx context.Context, every time.Duration, log *zap.Logger, users Users, changed func([]App)) {
	if a.file == nil {
		a.followOne(ctx, every, log, changed)
		return
	}
	kept := map[string]bool{} // apps that are missing and stay
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		read, err := a.file.Check()
		if err != nil {
			log.Error("ZOOM_APPS_FILE has changed and is of no use: what was read before stays in force", zap.Error(err))
		}
		if !read && len(kept) == 0 {
			continue
		}
		if list, news := a.merge(ctx, log, users, kept); read || news {
			a.current.Store(&list)
			log.Info("the Zoom apps have changed", zap.Strings("apps", names(list)))
			changed(list)
		}
	}
}

// followOne keeps the secrets of the one app in step with their files.
func (a *Apps) followOne(ctx context.Context, every time.Duration, log *zap.Logger, changed func([]App)) {
	var secrets Secrets
	take := func(set func(*App, secret.Text)) func(secret.Text) error {
		return func(text secret.Text) error {
			if text.IsZero() {
				return errors.New("it is empty")
			}
			list := slices.Clone(a.List())
			set(&list[0], text)
			a.current.Store(&list)
			changed(list)
			return nil
		}
	}
	secrets.On("ZOOM_CLIENT_SECRET", a.clientFile, take(func(app *App, text secret.Text) { app.ClientSecret = text }))
	secrets.On("ZOOM_WEBHOOK_SECRET_TOKEN", a.webhookFile, take(func(app *App, text secret.Text) { app.WebhookSecretToken = text }))
	secrets.Follow(ctx, every, log)
}

// merge is the file's apps and those that are missing there and stay. It reports
// whether one of them does not stay any more.
func (a *Apps) merge(ctx context.Context, log *zap.Logger, users Users, kept map[string]bool) (list []App, news bool) {
	file := a.file.Get()
	list = slices.Clone(file.apps)
	here := names(list)
	var counts map[string]int
	var err error
	for _, app := range a.List() {
		if slices.Contains(here, app.Name) || slices.Contains(file.removed, app.Name) {
			delete(kept, app.Name)
			continue
		}
		if counts == nil && err == nil {
			counts, err = users(ctx)
		}
		if err == nil && counts[app.Name] == 0 {
			delete(kept, app.Name)
			news = true
			continue
		}
		if !kept[app.Name] {
			log.Error("a Zoom app is missing in ZOOM_APPS_FILE and still has users: it stays until they are deregistered, or until it is named under removed",
				zap.String("app", app.Name), zap.Int("users", counts[app.Name]), zap.Error(err))
		}
		kept[app.Name] = true
		list = append(list, app)
	}
	return list, news
}

func names(apps []App) []string {
	names := make([]string, len(apps))
	for i, app := range apps {
		names[i] = app.Name
	}
	return names
}

// appsFile is what ZOOM_APPS_FILE says.
type appsFile struct {
	apps    []App
	removed []string // apps that may be missing although they have users
}

var appName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// readApps reads ZOOM_APPS_FILE. The error has a line for each fault, and quotes
// no value but names.
func readApps(path string, read reload.Read) (appsFile, error) {
	content, err := read(path)
	if err != nil {
		return appsFile{}, errors.New(fileFault(err))
	}
	var document struct {
		Apps []struct {
			Name             string `yaml:"name"`
			ClientID         string `yaml:"client_id"`
			ClientSecret     string `yaml:"client_secret"`
			ClientSecretFile string `yaml:"client_secret_file"`
			WebhookToken     string `yaml:"webhook_secret_token"`
			WebhookTokenFile string `yaml:"webhook_secret_token_file"`
			RecallOAuthAppID string `yaml:"recall_oauth_app_id"`
		} `yaml:"apps"`
		Removed []string `yaml:"removed"`
	}
	if err := reload.YAML(content, &document); err != nil {
		return appsFile{}, err
	}
	var faults []error
	if len(document.Apps) == 0 {
		faults = append(faults, errors.New("no apps: name at least one under apps"))
	}
	file := appsFile{removed: document.Removed}
	ids := map[string]string{}
	for i, a := range document.Apps {
		fault := func(text string, values ...any) {
			faults = append(faults, fmt.Errorf("app %d (%q): "+text, append([]any{i + 1, a.Name}, values...)...))
		}
		text := func(field, value, file string) secret.Text {
			if file == "" {
				return secret.New(value)
			}
			if value != "" {
				fault("%s and %s_file are both set: choose one", field, field)
			}
			if !filepath.IsAbs(file) {
				file = filepath.Join(filepath.Dir(path), file)
			}
			content, err := read(file)
			if err != nil {
				fault("%s_file: %s", field, fileFault(err))
			}
			return secret.New(strings.TrimRight(string(content), "\r\n"))
		}
		app := App{
			Name: a.Name, ClientID: a.ClientID, OAuthApp: a.RecallOAuthAppID,
			ClientSecret:       text("client_secret", a.ClientSecret, a.ClientSecretFile),
			WebhookSecretToken: text("webhook_secret_token", a.WebhookToken, a.WebhookTokenFile),
		}
		switch {
		case !appName.MatchString(a.Name):
			fault("name: not 1 to 64 of a-z, 0-9 and -")
		case slices.Contains(names(file.apps), a.Name):
			fault("name: used twice")
		case slices.Contains(document.Removed, a.Name):
			fault("name: also under removed")
		}
		if a.ClientID == "" {
			fault("client_id: missing")
		} else if other, twice := ids[a.ClientID]; twice {
			fault("client_id: the same as that of %q", other)
		}
		if app.ClientSecret.IsZero() {
			fault("client_secret: missing")
		}
		ids[a.ClientID] = a.Name
		file.apps = append(file.apps, app)
	}
	return file, errors.Join(faults...)
}
