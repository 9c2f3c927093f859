package app

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/clock"
	"tokenprovider/internal/config"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
)

// ZoomClient returns a client of a Zoom app. metrics may be nil.
func ZoomClient(a config.App, client *http.Client, metrics *zoom.Metrics) *zoom.Client {
	return zoom.New(zoom.Config{
		ClientID: a.ClientID, ClientSecret: a.ClientSecret,
		OAuthURL: a.OAuthURL, APIURL: a.APIURL, HTTP: client, Metrics: metrics, App: a.Name,
	})
}

// WatchClocks returns the comparison of this machine's clock with Redis's and
// Zoom's.
func WatchClocks(z *config.Zoom, redis *store.Health, client *http.Client, log *zap.Logger) *clock.Monitor {
	atZoom := func(ctx context.Context) (time.Time, error) { return clock.ServerTime(ctx, client, z.ZoomOAuthURL) }
	return &clock.Monitor{Redis: redis.Now, Zoom: atZoom, Log: log.Named("clock")}
}
