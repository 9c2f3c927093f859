package config

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
)

// Apps are the configured Zoom apps, which change with their files while
// [Apps.Follow] runs. They are safe for concurrent use.
type Apps struct {
	file    *reload.Value[appsFile] // nil: one app
	current atomic.Pointer[[]App]

	clientFile, webhookFile string // of the one app; may be empty
}

// List returns the current apps.
func (a *Apps) List() []App { return *a.current.Load() }

// Users counts the users of each Zoom app.
type Users func(ctx context.Context) (map[string]int, error)

// CheckUsers returns [Faults] if an app that still has users is not configured, so
// that none is removed by accident.
func (a *Apps) CheckUsers(ctx context.Context, users Users) error {
	counts, err := users(ctx)
	if err != nil {
		return err
	}
	known := names(a.List())
	if a.file != nil {
		known = append(known, a.file.Get().removed...)
	}
	var faults Faults
	for app, n := range counts {
		if !slices.Contains(known, app) {
			faults = append(faults, fmt.Sprintf("ZOOM_APPS_FILE: the Zoom app %q is missing and still has %d users: "+
				"add it and deregister them, or list it under removed to give them up", app, n))
		}
	}
	if len(faults) > 0 {
		slices.Sort(faults)
		return faults
	}
	return nil
}

// Follow reloads the apps when their files change, until ctx ends, and calls changed
// with each new list. An app that is missing in the file but has users stays, unless
// the file lists it under removed.
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
		reloaded, err := a.file.Check()
		if err != nil {
			log.Error("Zoom apps not reloaded: invalid file; keeping the current apps", zap.Error(err))
		}
		if !reloaded && len(kept) == 0 {
			continue
		}
		if list, dropped := a.merge(ctx, log, users, kept); reloaded || dropped {
			a.current.Store(&list)
			log.Info("Zoom apps reloaded", zap.Strings("apps", names(list)))
			changed(list)
		}
	}
}

// followOne reloads the secrets of the one app when their files change.
func (a *Apps) followOne(ctx context.Context, every time.Duration, log *zap.Logger, changed func([]App)) {
	var secrets Secrets
	replace := func(set func(*App, secret.Text)) func(secret.Text) error {
		return func(text secret.Text) error {
			if text.IsZero() {
				return errors.New("empty")
			}
			list := slices.Clone(a.List())
			set(&list[0], text)
			a.current.Store(&list)
			changed(list)
			return nil
		}
	}
	secrets.On("ZOOM_CLIENT_SECRET", a.clientFile, replace(func(app *App, text secret.Text) { app.ClientSecret = text }))
	secrets.On("ZOOM_WEBHOOK_SECRET_TOKEN", a.webhookFile, replace(func(app *App, text secret.Text) { app.WebhookSecretToken = text }))
	secrets.Follow(ctx, every, log)
}

// merge returns the file's apps and those that are missing there and stay, which it
// records in kept. It reports whether one of them has been dropped.
func (a *Apps) merge(ctx context.Context, log *zap.Logger, users Users, kept map[string]bool) (list []App, dropped bool) {
	file := a.file.Get()
	list = slices.Clone(file.apps)
	present := names(list)
	var counts map[string]int
	var err error
	for _, app := range a.List() {
		if slices.Contains(present, app.Name) || slices.Contains(file.removed, app.Name) {
			delete(kept, app.Name)
			continue
		}
		if counts == nil && err == nil {
			counts, err = users(ctx)
		}
		if err == nil && counts[app.Name] == 0 {
			delete(kept, app.Name)
			dropped = true
			continue
		}
		if !kept[app.Name] {
			log.Error("Zoom app with users missing in ZOOM_APPS_FILE; keeping it",
				zap.String("app", app.Name), zap.Int("users", counts[app.Name]), zap.Error(err))
		}
		kept[app.Name] = true
		list = append(list, app)
	}
	return list, dropped
}

func names(apps []App) []string {
	names := make([]string, len(apps))
	for i, app := range apps {
		names[i] = app.Name
	}
	return names
}
