// Command sandbox shows the whole thing in one process, without any set-up: an
// embedded Redis, stand-ins for Zoom and Recall, the registrar and the token
// server, all on loopback. It registers a first user over gRPC, calls back as
// Recall would, and waits for a renewal. Nothing of it is fit for real tokens.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

const about = `Runs everything in one process on loopback, with stand-ins for Redis, Zoom and Recall: registers a user, serves a token, renews it.`

type settings struct {
	config.Program
	Once bool `help:"Make one full round, from a user's consent to the removal, and exit."`
}

func main() { os.Exit(app.Main("sandbox", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := settings{}
	if err := config.Parse("sandbox", about, &c, append([]string{"--log-level=error", "--log-format=console"}, args...), stdout); err != nil {
		return err
	}
	s, err := start(ctx, c.Logger(stderr))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	played := make(chan error, 1)
	go func() {
		err := s.play(ctx, &narrator{w: stdout, began: time.Now()}, c.Once)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // interrupted
		}
		played <- err
		cancel()
	}()
	stopped := app.Run(ctx, s.log, 10*time.Second, s.parts...)
	cancel()
	return errors.Join(<-played, stopped)
}

// narrator prints what happens, a line each.
type narrator struct {
	w     io.Writer
	began time.Time
}

func (n *narrator) say(who, format string, values ...any) {
	_, _ = fmt.Fprintf(n.w, "%5.1fs  %-9s %s\n", time.Since(n.began).Seconds(), who, fmt.Sprintf(format, values...))
}

func (n *narrator) try(what string, commands ...string) {
	_, _ = fmt.Fprintf(n.w, "\n        %s\n", what)
	for _, command := range commands {
		_, _ = fmt.Fprintf(n.w, "            %s\n", command)
	}
}

const (
	user        = "ann"
	zoomUser    = "zoom-user-ann"
	redirectURI = "https://app.example/oauth/zoom"
	recallKey   = "recall-key" // the one that the stand-in takes
)

// play is the story that the sandbox tells.
func (s *sandbox) play(ctx context.Context, n *narrator, once bool) error {
	n.say("start", "Redis (embedded), Zoom and Recall (stand-ins) are up")
	n.say("start", "token server at %s, registrar at %s", s.tokens, s.registrar)

	connection, err := grpc.NewClient(s.registrar, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	registrar := registrarv1.NewRegistrarServiceClient(connection)

	code := s.zoom.Consent(zoomtest.DefaultClientID, zoomUser, redirectURI, "")
	n.say("zoom", "the user %s consents; Zoom sends a code, good once and for 5 minutes", user)
	registered, err := registrar.RegisterUser(ctx, &registrarv1.RegisterUserRequest{
		UserId: user,
		Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
			AuthorizationCode: &registrarv1.AuthorizationCode{Code: code, RedirectUri: redirectURI},
		},
	})
	if err != nil {
		return fmt.Errorf("registering: %w", err)
	}
	credential := registered.GetUser().GetRecallCredentialId()
	n.say("registrar", "RegisterUser: the code is a grant now, and Recall has a credential for it (%s)", registered.GetUser().GetState())
	n.say("recall", "called the user's own URL while it made the credential, and took the token")

	first, err := s.callBack(ctx, credential)
	if err != nil {
		return err
	}
	n.say("recall", "a bot joins a meeting: calls the URL again, gets the token %s", look(first))
	if !once {
		n.try("Try it in another terminal:",
			fmt.Sprintf("curl -i %s", s.url(credential)),
			fmt.Sprintf(`grpcurl -plaintext -d '{"user_id":%q}' %s tokenprovider.registrar.v1.RegistrarService/GetUser`, user, s.registrar),
			fmt.Sprintf(`grpcurl -plaintext -d '{"user_id":"bob","authorization_code":{"code":%q,"redirect_uri":%q}}' %s tokenprovider.registrar.v1.RegistrarService/RegisterUser`,
				s.zoom.Consent(zoomtest.DefaultClientID, "zoom-user-bob", redirectURI, ""), redirectURI, s.registrar),
			fmt.Sprintf("curl -s %s/metrics | grep tokenprovider_", s.ops))
		n.try("Or run bin/tokenserver, bin/registrar and bin/tokenctl against these stand-ins, with:", s.settings()...)
		_, _ = fmt.Fprintln(n.w)
	}
	n.say("wait", "tokens live for %v here and are renewed after %v: the refresh token works once, the old access token dies", tokenLife, tokenLife/10)

	if err := s.awaitRenewals(ctx, 1); err != nil {
		return err
	}
	second, err := s.callBack(ctx, credential)
	if err != nil {
		return err
	}
	if second == first || s.zoom.IsLive(first) || !s.zoom.IsLive(second) {
		return errors.New("the renewal did not replace the token")
	}
	n.say("refresher", "renewed it: %s is dead at Zoom, the URL gives %s", look(first), look(second))
	if !once {
		return s.keepTelling(ctx, n)
	}
	address := s.url(credential)
	if _, err := registrar.DeregisterUser(ctx, &registrarv1.DeregisterUserRequest{UserId: user, RevokeGrant: true}); err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	status, err := get(ctx, address)
	if err != nil {
		return err
	}
	if status != http.StatusNotFound || len(s.recall.Credentials()) != 0 {
		return fmt.Errorf("after the removal: the URL answers %d, Recall has %d credentials", status, len(s.recall.Credentials()))
	}
	n.say("registrar", "DeregisterUser: the credential is gone at Recall, the grant at Zoom, and the URL answers %d", status)
	n.say("done", "one full round")
	return nil
}

// keepTelling tells of every renewal until ctx ends.
func (s *sandbox) keepTelling(ctx context.Context, n *narrator) error {
	n.say("run", "this goes on until you press Ctrl-C")
	for {
		count := s.zoom.Counts().Refreshes
		if err := s.awaitRenewals(ctx, count+1); err != nil {
			return err
		}
		n.say("refresher", "renewed a token, the %s since the start", ordinal(count+1))
	}
}

// settings are the programs' settings for the stand-ins, which are not secret.
func (s *sandbox) settings() []string {
	return []string{
		fmt.Sprintf("export ZOOM_OAUTH_URL=%s ZOOM_API_URL=%s RECALL_API_URL=%s", s.zoomURL, s.zoomURL, s.recallURL),
		fmt.Sprintf("export ZOOM_CLIENT_ID=%s ZOOM_CLIENT_SECRET=%s", zoomtest.DefaultClientID, zoomtest.DefaultClientSecret),
		fmt.Sprintf("export RECALL_OAUTH_APP_ID=%s RECALL_API_KEY=%s", recalltest.DefaultOAuthApp, recallKey),
	}
}

func (s *sandbox) awaitRenewals(ctx context.Context, n int) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s.zoom.Counts().Refreshes < n {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// callBack is Recall asking for a token.
func (s *sandbox) callBack(ctx context.Context, credential string) (string, error) {
	token, status, err := s.recall.Callback(ctx, credential)
	if err != nil {
		return "", fmt.Errorf("Recall's callback was answered %d: %w", status, err) //nolint:staticcheck // a name
	}
	return token, nil
}

// url is the address that Recall was given. The sandbox may show it; nothing
// else may.
func (s *sandbox) url(credential string) string {
	for _, c := range s.recall.Credentials() {
		if c.ID == credential {
			return c.AccessTokenCallbackURL
		}
	}
	return ""
}

func get(ctx context.Context, address string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, errors.Unwrap(err) // without the URL
	}
	return response.StatusCode, response.Body.Close()
}

// look shows enough of a stand-in's token to tell it from the next.
func look(token string) string { return "…" + token[len(token)-8:] }

func ordinal(n int) string {
	suffix := "th"
	switch {
	case n%100/10 == 1:
	case n%10 == 1:
		suffix = "st"
	case n%10 == 2:
		suffix = "nd"
	case n%10 == 3:
		suffix = "rd"
	}
	return fmt.Sprint(n, suffix)
}

func mustURL(raw string) *url.URL {
	parsed, err := url.Parse(raw)
	if err != nil {
		panic(err) // made from a listener's address
	}
	return parsed
}
