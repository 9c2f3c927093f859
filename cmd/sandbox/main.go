// Command sandbox runs the token server and the registrar in one process, with an
// embedded Redis and stand-ins for Zoom and Recall, all on loopback. It registers a
// user over gRPC, calls the callback URL as Recall does, and waits for a renewal. It
// is not safe for real tokens.
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

const about = `Runs the token server and the registrar in one process on loopback, with stand-ins for Redis, Zoom and Recall: registers a user, serves a token, renews it.`

type settings struct {
	config.Program
	Once bool `help:"One full round, from a user's consent to the user's removal, then exit."`
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
	demonstrated := make(chan error, 1)
	go func() {
		err := s.demonstrate(ctx, &narrator{w: stdout, began: time.Now()}, c.Once)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // interrupted
		}
		demonstrated <- err
		cancel()
	}()
	stopped := app.Run(ctx, s.log, 10*time.Second, s.parts...)
	cancel()
	return errors.Join(<-demonstrated, stopped)
}

// narrator prints one line for each event.
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
	recallKey   = "recall-key" // accepted by the stand-in
)

// demonstrate registers a user, serves a token and waits for its renewal. With once it
// then removes the user and returns; otherwise it reports renewals until ctx ends.
func (s *sandbox) demonstrate(ctx context.Context, n *narrator, once bool) error {
	n.say("start", "Redis (embedded), Zoom and Recall (stand-ins) are up")
	n.say("start", "token server at %s, registrar at %s", s.tokens, s.registrar)

	connection, err := grpc.NewClient(s.registrar, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	registrar := registrarv1.NewRegistrarServiceClient(connection)

	code := s.zoom.Consent(zoomtest.DefaultClientID, zoomUser, redirectURI, "")
	n.say("zoom", "the user %s consents; Zoom issues a code, valid once and for 5 minutes", user)
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
	n.say("registrar", "RegisterUser: the code is exchanged for a grant, and Recall has its credential (%s)", registered.GetUser().GetState())
	n.say("recall", "called the user's own URL while it created the credential, and got the token")

	first, err := s.callBack(ctx, credential)
	if err != nil {
		return err
	}
	n.say("recall", "a bot joins a meeting: calls the URL again, gets the token %s", tail(first))
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
	n.say("wait", "tokens are valid for %v here and renewed after %v: a refresh token works once, and its use ends the old access token", tokenLife, tokenLife/10)

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
	n.say("refresher", "renewed it: %s is invalid at Zoom, the URL returns %s", tail(first), tail(second))
	if !once {
		return s.reportRenewals(ctx, n)
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
		return fmt.Errorf("after the removal: the URL returns %d, Recall has %d credentials", status, len(s.recall.Credentials()))
	}
	n.say("registrar", "DeregisterUser: the credential is deleted at Recall, the grant revoked at Zoom, and the URL returns %d", status)
	n.say("done", "one full round")
	return nil
}

// reportRenewals prints every renewal until ctx ends.
func (s *sandbox) reportRenewals(ctx context.Context, n *narrator) error {
	n.say("run", "continues until Ctrl-C")
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

// callBack has the Recall stand-in call a credential's URL, and returns the token.
func (s *sandbox) callBack(ctx context.Context, credential string) (string, error) {
	token, status, err := s.recall.Callback(ctx, credential)
	if err != nil {
		return "", fmt.Errorf("calling back: status %d: %w", status, err)
	}
	return token, nil
}

// url returns the callback URL of a credential. Only the sandbox may print one.
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

// tail returns the end of a stand-in's token, enough to distinguish tokens.
func tail(token string) string { return "…" + token[len(token)-8:] }

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
