package config_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/config"
)

const twoApps = `
apps:
  - name: default
    client_id: one
    client_secret_file: one-secret
    webhook_secret_token: hook
    recall_oauth_app_id: uuid-1
  - {name: second, client_id: two, client_secret: s2, recall_oauth_app_id: uuid-2}
`

func names(apps []config.App) (names []string) {
	for _, app := range apps {
		names = append(names, app.Name)
	}
	return names
}

// appsFile writes a file and reads the settings that name it.
func appsFile(t *testing.T, content string) (z *config.Zoom, write func(string), faults map[string]string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "apps.yaml")
	write = func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(content)
	if err := os.WriteFile(filepath.Join(dir, "one-secret"), []byte("s1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	z, faults = &config.Zoom{ZoomAppsFile: path}, map[string]string{}
	z.Check(func(setting, text string) { faults[setting] = text })
	return z, write, faults
}

func TestAppsAreRead(t *testing.T) {
	z, _, faults := appsFile(t, twoApps)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	apps := z.Apps(config.App{}, "").List()
	if len(apps) != 2 || apps[0].Name != "default" || apps[0].ClientID != "one" || apps[0].ClientSecret.Reveal() != "s1" ||
		apps[0].WebhookSecretToken.Reveal() != "hook" || apps[0].OAuthApp != "uuid-1" || apps[1].ClientSecret.Reveal() != "s2" {
		t.Errorf("read %d apps, not as written", len(apps))
	}
}

func TestFaultsOfTheAppsFileAreNamed(t *testing.T) {
	for content, want := range map[string]string{
		"apps: []": "apps: must have at least one",
		"apps: [{name: a, client_id: x, client_secret: hunter2}, {name: a, client_id: y, client_secret: z}]": "used twice",
		"apps: [{name: a, client_id: x, client_secret: hunter2}, {name: b, client_id: x, client_secret: z}]": `the same as that of "a"`,
		"apps: [{name: a, client_id: x, client_secret: hunter2}]\nremoved: [a]":                              "also under removed",
		"apps: [{name: a, client_id: x, client_secret: hunter2, client_secret_file: one-secret}]":            "client_secret is mutually exclusive with client_secret_file",
		"apps: [{name: a, client_id: x, client_secret_file: missing}]":                                       "client_secret_file: the file cannot be read",
		"apps: [{name: a, client_id: x, client_secret: hunter2, secret: y}]":                                 "field secret not found",
		"apps: [{name: a, client_id: x, client_secret: [hunter2]}]":                                          "line 1",
	} {
		_, _, faults := appsFile(t, content)
		if got := faults["ZOOM_APPS_FILE"]; !strings.Contains(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("%q, want %q and no value", got, want)
		}
	}
}

func TestAnAppWithUsersIsNotRemovedByAccident(t *testing.T) {
	z, write, _ := appsFile(t, twoApps)
	apps := z.Apps(config.App{}, "")
	var users atomic.Int64
	users.Store(3)
	count := func(context.Context) (map[string]int, error) {
		n := int(users.Load())
		if n < 0 {
			return nil, errors.New("Redis is down")
		}
		return map[string]int{"second": n}, nil
	}
	if err := apps.CheckUsers(t.Context(), count); err != nil {
		t.Error(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	ctx, cancel := context.WithCancel(t.Context())
	ended, changed := make(chan struct{}), make(chan []string, 10)
	go func() {
		defer close(ended)
		apps.Follow(ctx, time.Millisecond, zap.New(core), count, func(list []config.App) { changed <- names(list) })
	}()
	defer func() {
		cancel()
		<-ended
	}()
	want := func(want ...string) {
		t.Helper()
		select {
		case got := <-changed:
			if !slices.Equal(got, want) || !slices.Equal(names(apps.List()), want) {
				t.Errorf("the apps are %v, want %v", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no change to %v", want)
		}
	}
	one := twoApps[:strings.Index(twoApps, "  - {name: second")]
	write(one)
	want("default", "second") // it has users
	if n := logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
	users.Store(0)
	want("default") // now it has none
	write(twoApps)
	want("default", "second")
	users.Store(-1)
	write(one)
	want("default", "second") // the number of users is unknown
	write(one + "removed: [second]\n")
	want("default") // on purpose
	write("apps: nonsense")
	for end := time.Now().Add(10 * time.Second); logs.FilterMessageSnippet("not reloaded").Len() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an invalid file is not logged")
		}
	}
	if got := names(apps.List()); !slices.Equal(got, []string{"default"}) {
		t.Errorf("after it the apps are %v", got)
	}
}

func TestStartWithoutAnAppThatHasUsers(t *testing.T) {
	count := func(context.Context) (map[string]int, error) { return map[string]int{"second": 2, "default": 1}, nil }
	one := twoApps[:strings.Index(twoApps, "  - {name: second")]
	z, _, _ := appsFile(t, one)
	err := z.Apps(config.App{}, "").CheckUsers(t.Context(), count)
	var faults config.Faults
	if !errors.As(err, &faults) || len(faults) != 1 || !strings.Contains(faults[0], `"second" is missing and still has 2 users`) {
		t.Errorf("error %v", err)
	}
	z, _, _ = appsFile(t, one+"removed: [second]\n")
	if err := z.Apps(config.App{}, "").CheckUsers(t.Context(), count); err != nil {
		t.Errorf("given up on purpose: %v", err)
	}
	single := &config.Zoom{ZoomClientID: "one"}
	if err := single.Apps(config.App{OAuthApp: "uuid"}, "").CheckUsers(t.Context(), count); !errors.As(err, &faults) {
		t.Errorf("with one app: %v", err)
	}
	if app := single.Apps(config.App{OAuthApp: "uuid"}, "").List()[0]; app.Name != config.DefaultApp || app.ClientID != "one" || app.OAuthApp != "uuid" {
		t.Errorf("the one app is %s", app.Name)
	}
}

// TestAppsHaveTheirOwnHostsAndRates: each app may override the settings of all.
func TestAppsHaveTheirOwnHostsAndRates(t *testing.T) {
	z, write, faults := appsFile(t, twoApps)
	var err error
	if z.ZoomOAuthURL, err = config.ParseURL("https://zoom.us"); err != nil {
		t.Fatal(err)
	}
	if z.ZoomAPIURL, err = config.ParseURL("https://api.zoom.us"); err != nil {
		t.Fatal(err)
	}
	write(twoApps + "  - {name: third, client_id: three, client_secret: s3, oauth_url: 'https://zoomgov.com/', api_url: https://api.zoomgov.com, refresh_max_per_second: 7}\n")
	z.Check(func(setting, text string) { faults[setting] = text })
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	apps := z.Apps(config.App{}, "").List()
	if one := apps[1]; one.OAuthURL.String() != "https://zoom.us" || one.APIURL.String() != "https://api.zoom.us" || one.MaxPerSecond != 0 {
		t.Errorf("without its own: %s, %s, %d", one.OAuthURL, one.APIURL, one.MaxPerSecond)
	}
	if one := apps[2]; one.OAuthURL.String() != "https://zoomgov.com" || one.APIURL.String() != "https://api.zoomgov.com" || one.MaxPerSecond != 7 {
		t.Errorf("with its own: %s, %s, %d", one.OAuthURL, one.APIURL, one.MaxPerSecond)
	}
	for text, want := range map[string]string{
		"oauth_url: zoom.us": "oauth_url: must be an absolute URL", "api_url: 'https://u:hunter2@h'": "api_url: must be an absolute URL",
		"refresh_max_per_second: 0": "refresh_max_per_second: must be at least 1",
	} {
		_, _, faults := appsFile(t, "apps: [{name: a, client_id: x, client_secret: hunter2, "+text+"}]")
		if got := faults["ZOOM_APPS_FILE"]; !strings.Contains(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("%q, want %q and no value", got, want)
		}
	}
}
