package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
)

// appsFile is the content of ZOOM_APPS_FILE.
type appsFile struct {
	apps    []App
	removed []string // apps that may be missing although they have users
}

// appEntry is an app in the file. Fields that may be missing have their default from
// the settings of all apps.
type appEntry struct {
	Name             string `yaml:"name"`
	ClientID         string `yaml:"client_id"`
	ClientSecret     string `yaml:"client_secret"`
	ClientSecretFile string `yaml:"client_secret_file"`
	WebhookToken     string `yaml:"webhook_secret_token"`
	WebhookTokenFile string `yaml:"webhook_secret_token_file"`
	RecallOAuthAppID string `yaml:"recall_oauth_app_id"`
	OAuthURL         string `yaml:"oauth_url"`
	APIURL           string `yaml:"api_url"`
	MaxPerSecond     *int   `yaml:"refresh_max_per_second"`
}

var appName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// readApps reads ZOOM_APPS_FILE. The error has a line for each fault, and quotes no
// value but names.
func readApps(path string, defaults App, read reload.Read) (appsFile, error) {
	content, err := read(path)
	if err != nil {
		return appsFile{}, errors.New(fileFault(err))
	}
	var document struct {
		Apps    []appEntry `yaml:"apps"`
		Removed []string   `yaml:"removed"`
	}
	if err := reload.YAML(content, &document); err != nil {
		return appsFile{}, err
	}
	var faults []error
	if len(document.Apps) == 0 {
		faults = append(faults, errors.New("apps: must have at least one"))
	}
	file := appsFile{removed: document.Removed}
	ids := map[string]string{}
	for i, entry := range document.Apps {
		fault := func(text string, values ...any) {
			faults = append(faults, fmt.Errorf("app %d (%q): "+text, append([]any{i + 1, entry.Name}, values...)...))
		}
		app := entry.app(filepath.Dir(path), defaults, read, fault)
		switch {
		case !appName.MatchString(app.Name):
			fault("name: must be 1 to 64 of a-z, 0-9 and -")
		case slices.Contains(names(file.apps), app.Name):
			fault("name: used twice")
		case slices.Contains(document.Removed, app.Name):
			fault("name: also under removed")
		}
		if other, twice := ids[app.ClientID]; twice && app.ClientID != "" {
			fault("client_id: the same as that of %q", other)
		}
		ids[app.ClientID] = app.Name
		file.apps = append(file.apps, app)
	}
	return file, errors.Join(faults...)
}

// app returns the app of an entry, with the defaults for what is missing. It calls
// fault for each fault of the entry alone.
func (e appEntry) app(dir string, defaults App, read reload.Read, fault func(text string, values ...any)) App {
	app := defaults
	app.Name, app.ClientID, app.OAuthApp = e.Name, e.ClientID, e.RecallOAuthAppID
	text := func(field, value, file string) secret.Text {
		if file == "" {
			return secret.New(value)
		}
		if value != "" {
			fault("%s is mutually exclusive with %s_file", field, field)
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		content, err := read(file)
		if err != nil {
			fault("%s_file: %s", field, fileFault(err))
		}
		return trim(content)
	}
	address := func(field, value string, target **url.URL) {
		if value == "" {
			return
		}
		parsed, err := ParseURL(value)
		if err != nil {
			fault("%s: must be an absolute URL", field)
		}
		*target = parsed
	}
	app.ClientSecret = text("client_secret", e.ClientSecret, e.ClientSecretFile)
	app.WebhookSecretToken = text("webhook_secret_token", e.WebhookToken, e.WebhookTokenFile)
	address("oauth_url", strings.TrimSuffix(e.OAuthURL, "/"), &app.OAuthURL)
	address("api_url", strings.TrimSuffix(e.APIURL, "/"), &app.APIURL)
	if e.MaxPerSecond != nil {
		if app.MaxPerSecond = *e.MaxPerSecond; app.MaxPerSecond < 1 {
			fault("refresh_max_per_second: must be at least 1")
		}
	}
	if app.ClientID == "" {
		fault("client_id: is required")
	}
	if app.ClientSecret.IsZero() {
		fault("client_secret: is required")
	}
	return app
}
