package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/zap"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
	"tokenprovider/registrar"
	"tokenprovider/tokenserver"
)

// Recall needs tokens that are valid for two minutes, so tokenLife cannot be much
// shorter. With this margin a token is renewed after the first tenth of its
// lifetime, the earliest time.
const (
	tokenLife     = 150 * time.Second
	refreshBefore = 140 * time.Second
)

// sandbox has the running parts and their addresses.
type sandbox struct {
	log    *zap.Logger
	zoom   *zoomtest.Zoom
	recall *recalltest.Recall
	parts  []app.Part

	tokens    string // base URL of the token server
	ops       string // base URL of health and metrics
	registrar string // address of the gRPC service
	zoomURL   string // base URL of the stand-in
	recallURL string // base URL of the stand-in
}

// start opens the listeners and creates the parts; [app.Run] runs them.
func start(ctx context.Context, log *zap.Logger) (*sandbox, error) {
	s := &sandbox{log: log, zoom: zoomtest.New(zoomtest.Options{AccessTokenLifetime: tokenLife})}
	s.recall = recalltest.New(recalltest.Options{APIKey: recallKey, Identify: s.identify})

	embedded := miniredis.NewMiniRedis()
	if err := embedded.Start(); err != nil {
		return nil, fmt.Errorf("starting the embedded Redis: %w", err)
	}
	client, err := store.Connect(secret.New("redis://" + embedded.Addr()))
	if err != nil {
		return nil, err
	}

	var listeners [5]net.Listener
	var urls [5]string
	for i := range listeners {
		listener, err := app.Listen(ctx, "loopback", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners[i], urls[i] = listener, "http://"+listener.Addr().String()
	}
	s.zoomURL, s.recallURL = urls[0], urls[1]
	zoomURL, recallURL := mustURL(urls[0]), mustURL(urls[1])
	s.tokens, s.ops, s.registrar = urls[2], urls[3], listeners[4].Addr().String()

	keyset, err := seal.New()
	if err != nil {
		return nil, err
	}
	grants := store.New(client, keyset)
	directory, err := os.MkdirTemp("", "sandbox-journal-")
	if err != nil {
		return nil, fmt.Errorf("creating the journal's directory: %w", err)
	}
	responses, err := journal.Open(directory, keyset, 0)
	if err != nil {
		return nil, err
	}
	s.parts = append(s.parts, app.Part{Name: "storage", Stop: func(context.Context) error {
		defer embedded.Close()
		return errors.Join(responses.Close(), os.RemoveAll(directory), client.Close())
	}})
	outbound := &http.Client{Timeout: 10 * time.Second}
	zoomClient := zoom.New(zoom.Config{
		ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(zoomtest.DefaultClientSecret),
		OAuthURL: zoomURL, APIURL: zoomURL, HTTP: outbound,
	})
	metrics := app.Metrics("sandbox")
	renewer := renewal.New(renewal.Config{
		Store: grants, Journal: responses, Log: log, Metrics: metrics, RefreshBefore: refreshBefore,
		Apps: map[string]renewal.App{config.DefaultApp: {Zoom: zoomClient}},
	})
	cache, err := tokenserver.NewCache(grants, 1000, log)
	if err != nil {
		return nil, err
	}
	handler := tokenserver.New(tokenserver.Config{Cache: cache, Tokens: renewer, Log: log, Metrics: metrics})
	refresher := &tokenserver.Refresher{Index: grants, Renewer: renewer, Log: log, Poll: 500 * time.Millisecond}
	service := registrar.New(registrar.Config{
		Store: grants, Renewer: renewer, Log: log, CallbackBase: mustURL(s.tokens),
		Apps: map[string]registrar.App{config.DefaultApp: {Zoom: zoomClient, OAuthApp: recalltest.DefaultOAuthApp}},
		Vendor: recallvendor.New(recall.New(recall.Config{
			APIURL: recallURL, APIKey: secret.New(recallKey), HTTP: outbound,
		})),
	})
	server, _, err := registrar.NewServer(service, &registrar.Access{Plaintext: true})
	if err != nil {
		return nil, err
	}
	ready := &app.Readiness{Check: grants.Ping}
	s.parts = append(s.parts,
		app.HTTP("zoom", log, listeners[0], s.zoom),
		app.HTTP("recall", log, listeners[1], s.recall),
		app.HTTP("ops", log, listeners[3], app.Ops(ready, metrics)),
		app.Loop("recovery", renewer.Run),
		app.Part{Name: "renewals", Stop: renewer.Close},
		app.Part{Name: "registrations", Stop: service.Close},
		app.Loop("refresher", refresher.Run),
		app.Loop("heartbeat", func(ctx context.Context) { grants.RunHeartbeat(ctx, "tokenserver", config.Version()) }),
		app.Loop("unfinished registrations", func(ctx context.Context) { service.RunUnfinished(ctx, time.Second) }),
		app.Loop("changes", func(ctx context.Context) { grants.Subscribe(ctx, cache) }),
		app.HTTP("callbacks", log, listeners[2], handler),
		app.GRPC("grpc", listeners[4], server),
		app.Part{Name: "watches", Stop: func(context.Context) error { service.EndWatches(); return nil }},
		ready.Part(),
	)
	return s, nil
}

// identify returns the Zoom user of a token, from the Zoom stand-in. The Recall
// stand-in calls it.
func (s *sandbox) identify(_ context.Context, token string) (zoomUser, account string, left time.Duration, err error) {
	whose, left, ok := s.zoom.LookUpAccessToken(token)
	if !ok {
		return "", "", 0, errors.New("unknown token")
	}
	return whose.ID, whose.AccountID, left, nil
}
