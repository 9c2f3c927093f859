package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/tokenserver"
)

const redirect = "https://app.example/oauth/zoom"

// world is the registrar, called over gRPC, with a real Redis, a token server
// and the stand-ins.
type world struct {
	registrarv1.RegistrarServiceClient
	*replica
	t      testing.TB
	redis  *testkit.Redis
	zoom   *zoomtest.Zoom
	recall *recalltest.Recall
	keyset *seal.Keyset
	base   *url.URL
	logs   *observer.ObservedLogs
	log    *zap.Logger

	zoomURL, recallURL *url.URL
}

func parse(t testing.TB, raw string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

const secondApp = "0a6c2c0e-3b1f-4d57-8f0e-0d6b7a3f9c11" // Recall's uuid of the Zoom app "second"

func start(t *testing.T) *world {
	t.Helper()
	w := surroundings(t)
	w.replica = w.join(replicaOptions{})
	return w
}

// surroundings is a world without a registrar.
func surroundings(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, redis: testkit.StartRedis(t), zoom: zoomtest.New(zoomtest.Options{
		Apps: map[string]string{zoomtest.DefaultClientID: zoomtest.DefaultClientSecret, "second-client": "second-secret"},
	})}
	w.recall = recalltest.New(recalltest.Options{
		OAuthApps: []string{recalltest.DefaultOAuthApp, secondApp}, RateLimit: -1, ListRateLimit: -1, PageSize: 3,
		Identify: func(_ context.Context, token string) (string, string, time.Duration, error) {
			user, left, ok := w.zoom.LookUpAccessToken(token)
			if !ok {
				return "", "", 0, errors.New("dead token")
			}
			return user.ID, user.AccountID, left, nil
		},
	})
	zoomServer, recallServer := httptest.NewServer(w.zoom), httptest.NewServer(w.recall)
	w.zoomURL, w.recallURL = parse(t, zoomServer.URL), parse(t, recallServer.URL)
	w.keyset = testkit.Keyset(t)
	core, logs := observer.New(zap.DebugLevel)
	w.log, w.logs = zap.New(core), logs

	// The token server has a rotator of its own.
	grants := store.New(w.redis.Client(), w.keyset)
	rotator, closeRotator := w.rotator(grants, t.TempDir(), &http.Client{Transport: &http.Transport{}}, &life{})
	cache, err := tokenserver.NewCache(grants, 1000, w.log)
	if err != nil {
		t.Fatal(err)
	}
	tokens := httptest.NewServer(tokenserver.New(tokenserver.Config{
		Cache: cache, Tokens: rotator, Log: w.log, Metrics: prometheus.NewRegistry(),
	}))
	w.base = parse(t, tokens.URL)
	t.Cleanup(func() {
		closeRotator(10 * time.Second)
		tokens.Close()
		recallServer.Close()
		zoomServer.Close()
		w.wantNothingSecretLogged()
	})
	return w
}

func (w *world) client(name, clientSecret string, http *http.Client) *zoom.Client {
	return zoom.New(zoom.Config{ClientID: name, ClientSecret: secret.New(clientSecret), OAuthURL: w.zoomURL, APIURL: w.zoomURL, HTTP: http})
}

func (w *world) rotator(grants *store.Store, folder string, http *http.Client, of *life) (*renewal.Renewer, func(time.Duration)) {
	w.t.Helper()
	kept, err := journal.Open(folder, w.keyset, time.Minute)
	for end := time.Now().Add(5 * time.Second); errors.Is(err, journal.ErrLocked) && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // a redis-server that is being started has the lock until its exec
		kept, err = journal.Open(folder, w.keyset, time.Minute)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	rotator := renewal.New(renewal.Config{
		Store: grants, Journal: paper{kept, of}, Log: w.log, Metrics: prometheus.NewRegistry(), RefreshBefore: 5 * time.Minute,
		PauseAfterFailover: time.Nanosecond, VerifyDelay: time.Nanosecond,
		Apps: map[string]renewal.App{
			"default": {Zoom: w.client(zoomtest.DefaultClientID, zoomtest.DefaultClientSecret, http)},
			"second":  {Zoom: w.client("second-client", "second-secret", http)},
		},
	})
	return rotator, func(grace time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = rotator.Close(ctx) // what is not safe stays in the journal
		_ = kept.Close()
	}
}

// wantNothingSecretLogged looks for the shapes of tokens, codes and URLs.
func (w *world) wantNothingSecretLogged() {
	for _, entry := range w.logs.All() {
		line := entry.Message + fmt.Sprint(entry.ContextMap())
		if strings.Contains(line, "eyJ") || strings.Contains(line, "/callback/") || strings.Contains(line, "recall-key") {
			w.t.Errorf("%q logs a secret", entry.Message)
		}
	}
}

func (w *world) code(zoomUser string) string {
	return w.zoom.Consent(zoomtest.DefaultClientID, zoomUser, redirect, "")
}

func byCode(user, code string) *registrarv1.RegisterUserRequest {
	return &registrarv1.RegisterUserRequest{UserId: user, Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
		AuthorizationCode: &registrarv1.AuthorizationCode{Code: code, RedirectUri: redirect},
	}}
}

func byRefreshToken(user, token string) *registrarv1.RegisterUserRequest {
	return &registrarv1.RegisterUserRequest{UserId: user, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: token}}
}

func (w *world) register(r *registrarv1.RegisterUserRequest) *registrarv1.User {
	w.t.Helper()
	response, err := w.RegisterUser(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.GetUser()
}

func (w *world) get(user string) *registrarv1.User {
	w.t.Helper()
	response, err := w.GetUser(w.t.Context(), &registrarv1.GetUserRequest{UserId: user})
	if err != nil {
		w.t.Fatal(err)
	}
	return response.GetUser()
}

func wantState(t *testing.T, user *registrarv1.User, want registrarv1.State) {
	t.Helper()
	if user.GetState() != want {
		t.Errorf("state %v (%s), want %v", user.GetState(), user.GetReason(), want)
	}
}

// wantCredentials checks that Recall has the credentials of these users and no
// others, and that each gives a live token of its Zoom user.
func (w *world) wantCredentials(zoomUsers ...string) {
	w.t.Helper()
	credentials := w.recall.Credentials()
	got := map[string]bool{}
	for _, c := range credentials {
		got[c.UserID] = true
		token, status, err := w.recall.Callback(w.t.Context(), c.ID)
		if err != nil || status != http.StatusOK {
			w.t.Errorf("the callback of %s: %d, %v", c.UserID, status, err)
			continue
		}
		if user, _, ok := w.zoom.LookUpAccessToken(token); !ok || user.ID != c.UserID {
			w.t.Errorf("the callback of %s gives a token of %q", c.UserID, user.ID)
		}
	}
	for _, user := range zoomUsers {
		if !got[user] {
			w.t.Errorf("no credential for %s", user)
		}
	}
	if len(credentials) != len(zoomUsers) {
		w.t.Errorf("%d credentials at Recall, want %d", len(credentials), len(zoomUsers))
	}
}

// failure is what a status says.
type failure struct {
	code    codes.Code
	text    string
	fields  map[string]string
	info    *errdetails.ErrorInfo
	retryIn time.Duration
}

func read(t *testing.T, err error) failure {
	t.Helper()
	st, ok := status.FromError(err)
	if !ok || err == nil {
		t.Fatalf("error %v, want a status", err)
	}
	f := failure{code: st.Code(), text: st.Message(), fields: map[string]string{}}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range d.GetFieldViolations() {
				f.fields[violation.GetField()] = violation.GetDescription()
			}
		case *errdetails.ErrorInfo:
			f.info = d
		case *errdetails.RetryInfo:
			f.retryIn = d.GetRetryDelay().AsDuration()
		}
	}
	return f
}

func wantFailure(t *testing.T, err error, want codes.Code) failure {
	t.Helper()
	f := read(t, err)
	if f.code != want {
		t.Fatalf("status %v (%s), want %v", f.code, f.text, want)
	}
	if want == codes.Unavailable && f.retryIn <= 0 {
		t.Error("UNAVAILABLE without RetryInfo")
	}
	if strings.Contains(f.text, "eyJ") || strings.Contains(f.text, "/callback/") {
		t.Errorf("the status holds a secret: %d characters", len(f.text))
	}
	return f
}

func TestRegisterByCode(t *testing.T) {
	w := start(t)
	user := w.register(byCode("ann", w.code("zoom-ann")))
	wantState(t, user, registrarv1.State_STATE_ACTIVE)
	if user.GetUserId() != "ann" || user.GetZoomApp() != "default" || user.GetZoomUserId() != "zoom-ann" || user.GetZoomAccountId() != "account-of-zoom-ann" || user.GetReason() != "" {
		t.Errorf("registered %v", user)
	}
	if got := w.recall.Credentials()[0]; got.ID != user.GetRecallCredentialId() || !strings.HasPrefix(got.AccessTokenCallbackURL, w.base.String()) {
		t.Error("the user's credential is not Recall's")
	}
	if left := time.Until(user.GetAccessTokenExpireTime().AsTime()); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the token expires in %v", left)
	}
	for name, at := range map[string]time.Time{
		"created": user.GetCreateTime().AsTime(), "updated": user.GetUpdateTime().AsTime(), "refreshed": user.GetLastRefreshTime().AsTime(),
	} {
		if age := time.Since(at); age < -time.Second || age > time.Minute {
			t.Errorf("%s %v ago", name, age)
		}
	}
	if got := w.get("ann"); !proto.Equal(got, user) {
		t.Errorf("GetUser returns %v, want %v", got, user)
	}
	w.wantCredentials("zoom-ann")
}

func TestRegisterWithPKCE(t *testing.T) {
	w := start(t)
	const verifier, challenge = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" // RFC 7636, appendix B
	request := byCode("ann", w.zoom.Consent(zoomtest.DefaultClientID, "zoom-ann", redirect, challenge))
	request.GetAuthorizationCode().CodeVerifier = verifier
	wantState(t, w.register(request), registrarv1.State_STATE_ACTIVE)
}

func TestRegisterByRefreshToken(t *testing.T) {
	w := start(t)
	_, token := w.zoom.Grant(zoomtest.DefaultClientID, "zoom-ann")
	wantState(t, w.register(byRefreshToken("ann", token)), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann")
	if w.zoom.AcceptsRefreshToken(token) {
		t.Error("the caller's token was not spent")
	}
	wantState(t, w.register(byRefreshToken("ann", token)), registrarv1.State_STATE_ACTIVE)
	if counts := w.zoom.Counts(); counts.SpentPresented != 0 {
		t.Error("a repeated call spent the token again")
	}
}

func TestRegisterAgain(t *testing.T) {
	w := start(t)
	code := w.code("zoom-ann")
	first := w.register(byCode("ann", code))

	// The same code: the same result.
	if again := w.register(byCode("ann", code)); !proto.Equal(first, again) {
		t.Errorf("repeated, the call returns %v, want %v", again, first)
	}
	if counts := w.zoom.Counts(); counts.SpentCodes != 0 || counts.Exchanges != 1 {
		t.Errorf("%+v: the code was spent again", counts)
	}

	// A new code: a new grant, the same credential and URL.
	before := w.recall.Credentials()[0]
	second := w.register(byCode("ann", w.code("zoom-ann")))
	if second.GetRecallCredentialId() != first.GetRecallCredentialId() || w.recall.Credentials()[0] != before {
		t.Error("a new consent changed the credential")
	}
	if !second.GetLastRefreshTime().AsTime().After(first.GetLastRefreshTime().AsTime()) {
		t.Error("the new grant's token is not in use")
	}
	w.wantCredentials("zoom-ann")
}

func TestAnotherZoomUserGetsAnotherCredential(t *testing.T) {
	w := start(t)
	first := w.register(byCode("ann", w.code("zoom-ann")))
	second := w.register(byCode("ann", w.code("zoom-ann-2")))
	wantState(t, second, registrarv1.State_STATE_ACTIVE)
	if second.GetRecallCredentialId() == first.GetRecallCredentialId() || second.GetZoomUserId() != "zoom-ann-2" {
		t.Errorf("registered %v", second)
	}
	w.wantCredentials("zoom-ann-2")
}

func TestConcurrentRegistrationsOfOneUser(t *testing.T) {
	w := start(t)
	var wg sync.WaitGroup
	for range 6 {
		code := w.code("zoom-ann")
		wg.Go(func() {
			if _, err := w.RegisterUser(t.Context(), byCode("ann", code)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantState(t, w.get("ann"), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann")
	if counts := w.recall.Counts(); counts.CreateAttempts != 1 {
		t.Errorf("%d credentials were asked for, want 1", counts.CreateAttempts)
	}
}

func TestConsentThatZoomRefuses(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	before := w.get("ann")
	other := byCode("bob", w.code("zoom-bob"))
	other.GetAuthorizationCode().RedirectUri = "https://elsewhere.example/"
	for name, c := range map[string]struct {
		request *registrarv1.RegisterUserRequest
		field   string
	}{
		"unknown code":          {byCode("ann", "nonsense"), "authorization_code.code"},
		"unknown refresh token": {byRefreshToken("ann", "nonsense"), "refresh_token"},
		"another redirect_uri":  {other, "authorization_code.code"},
	} {
		_, err := w.RegisterUser(t.Context(), c.request)
		if f := wantFailure(t, err, codes.InvalidArgument); f.fields[c.field] == "" || strings.Contains(f.text, "nonsense") {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if after := w.get("ann"); !proto.Equal(before, after) {
		t.Errorf("a refused consent changed the user into %v", after)
	}
	_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "bob"})
	wantFailure(t, err, codes.NotFound)
	w.wantCredentials("zoom-ann")
}

func TestZoomDown(t *testing.T) {
	w := start(t)
	code := w.code("zoom-ann")
	w.zoom.Fail("/oauth/token", 1, zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}})
	_, err := w.RegisterUser(t.Context(), byCode("ann", code))
	if f := wantFailure(t, err, codes.Unavailable); f.retryIn != 7*time.Second {
		t.Errorf("retry in %v, want what Zoom asked for", f.retryIn)
	}
	w.zoom.Fail("/oauth/token", 1, zoomtest.Fault{DropBefore: true})
	_, err = w.RegisterUser(t.Context(), byCode("ann", code))
	wantFailure(t, err, codes.Unavailable)
	w.zoom.SetClientSecret(zoomtest.DefaultClientID, "another")
	_, err = w.RegisterUser(t.Context(), byCode("ann", code))
	if f := wantFailure(t, err, codes.Unavailable); !strings.Contains(f.text, "operator") {
		t.Errorf("a wrong client secret returns %q", f.text)
	}
	w.zoom.SetClientSecret(zoomtest.DefaultClientID, zoomtest.DefaultClientSecret)
	wantState(t, w.register(byCode("ann", code)), registrarv1.State_STATE_ACTIVE) // the code was never spent
}

func TestRedisDownSpendsNothing(t *testing.T) {
	w := start(t)
	code := w.code("zoom-ann")
	w.redis.Kill()
	_, err := w.RegisterUser(t.Context(), byCode("ann", code))
	wantFailure(t, err, codes.Unavailable)
	if counts := w.zoom.Counts(); counts.Requests != 0 {
		t.Error("a code was sent to Zoom although its response could not be stored")
	}
	w.redis.Run()
	wantState(t, w.register(byCode("ann", code)), registrarv1.State_STATE_ACTIVE)
}

const credentialsPath = "/api/v2/zoom-oauth-credentials/"

func TestRecallDownLeavesTheUserPending(t *testing.T) {
	for name, fault := range map[string]recalltest.Fault{
		"error":             {Status: 500},
		"rate limit":        {Status: 429, Header: http.Header{"Retry-After": {"1"}}},
		"wrong key":         {Status: 401},
		"lost, not created": {DropBefore: true},
		"lost, created":     {DropAfter: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			w.recall.Fail(http.MethodPost, credentialsPath, 1, fault)
			code := w.code("zoom-ann")
			user := w.register(byCode("ann", code))
			wantState(t, user, registrarv1.State_STATE_PENDING)
			if user.GetReason() == "" || user.GetRecallCredentialId() != "" {
				t.Errorf("pending: %v", user)
			}
			// A caller's repetition finishes it, and a lost credential is found again.
			user = w.register(byCode("ann", code))
			wantState(t, user, registrarv1.State_STATE_ACTIVE)
			if user.GetReason() != "" {
				t.Errorf("the reason outlives its cause: %q", user.GetReason())
			}
			w.wantCredentials("zoom-ann")
			if counts := w.recall.Counts(); counts.Creates != 1 {
				t.Errorf("%d credentials were made, want 1", counts.Creates)
			}
		})
	}
}

// finish runs RunUnfinished until the condition holds.
func (w *world) finish(condition func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	run, stop := context.WithCancel(ctx)
	go func() {
		w.service.RunUnfinished(run, 10*time.Millisecond)
		close(ended)
	}()
	for !condition() {
		if ctx.Err() != nil {
			w.t.Error("the condition does not hold in time")
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	<-ended
}

func TestFinisherEndsWhatWasLeftHalfWay(t *testing.T) {
	w := start(t)
	w.register(byCode("eve", w.code("zoom-eve")))
	w.recall.Fail(http.MethodPost, credentialsPath, 3, recalltest.Fault{Status: 503})
	w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{DropAfter: true})
	for _, user := range []string{"ann", "bob", "cid"} {
		wantState(t, w.register(byCode(user, w.code("zoom-"+user))), registrarv1.State_STATE_PENDING)
	}
	w.recall.Fail(http.MethodDelete, credentialsPath, 2, recalltest.Fault{Status: 500})
	_, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "eve", RevokeGrant: true})
	wantFailure(t, err, codes.Unavailable)
	wantState(t, w.get("eve"), registrarv1.State_STATE_DELETING)

	w.finish(func() bool {
		for _, user := range []string{"ann", "bob", "cid"} {
			if w.get(user).GetState() != registrarv1.State_STATE_ACTIVE {
				return false
			}
		}
		_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "eve"})
		return status.Code(err) == codes.NotFound
	})
	w.wantCredentials("zoom-ann", "zoom-bob", "zoom-cid")
	if counts := w.zoom.Counts(); counts.Revocations != 1 {
		t.Error("the revocation that was asked for was forgotten")
	}
}

func TestZoomUserThatIsTaken(t *testing.T) {
	w := start(t)
	foreign := w.recall.AddCredential(recalltest.Credential{
		OAuthApp: recalltest.DefaultOAuthApp, AccessTokenCallbackURL: "https://other.example/x",
		UserID: "zoom-ann", AccountID: "acc", Status: "healthy",
	})
	_, err := w.RegisterUser(t.Context(), byCode("ann", w.code("zoom-ann")))
	f := wantFailure(t, err, codes.AlreadyExists)
	if f.info.GetMetadata()["conflicting_zoom_user_id"] != "zoom-ann" || f.info.GetMetadata()["conflicting_zoom_account_id"] == "" || f.info.GetReason() == "" {
		t.Errorf("details: %v", f.info)
	}
	_, err = w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"})
	wantFailure(t, err, codes.NotFound)
	if got := w.recall.Credentials(); len(got) != 1 || got[0].ID != foreign.ID {
		t.Errorf("%d credentials at Recall, want the foreign one alone", len(got))
	}
	if counts := w.zoom.Counts(); counts.Revocations != 0 {
		t.Error("the grant was revoked")
	}
}

func TestOurCredentialWithALostSecretIsReplaced(t *testing.T) {
	w := start(t)
	lost := grant.NewID("default", "ann")
	w.recall.AddCredential(recalltest.Credential{
		OAuthApp: recalltest.DefaultOAuthApp, Status: "healthy", UserID: "zoom-ann", AccountID: "acc",
		AccessTokenCallbackURL: w.base.JoinPath("callback", string(lost), strings.Repeat("x", 43)).String(),
	})
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann")
}

func TestDeregister(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	address := w.recall.Credentials()[0].AccessTokenCallbackURL
	for range 2 { // an absent user is not an error
		if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"}); err != nil {
			t.Fatal(err)
		}
	}
	w.wantCredentials()
	_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"})
	wantFailure(t, err, codes.NotFound)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("the URL of a removed user returns %d, want 404", response.StatusCode)
	}
	if counts := w.zoom.Counts(); counts.Revocations != 0 {
		t.Error("the grant was revoked unasked")
	}
}

func TestDeregisterRevokes(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.zoom.Fail("/oauth/revoke", 1, zoomtest.Fault{Status: 503})
	remove := &registrarv1.DeregisterUserRequest{UserId: "ann", RevokeGrant: true}
	_, err := w.DeregisterUser(t.Context(), remove)
	wantFailure(t, err, codes.Unavailable)
	if _, err := w.DeregisterUser(t.Context(), remove); err != nil {
		t.Fatal(err)
	}
	if counts := w.zoom.Counts(); counts.Revocations != 1 {
		t.Errorf("%d revocations, want 1", counts.Revocations)
	}
	// A grant that Zoom has ended already is as good as revoked.
	w.register(byCode("bob", w.code("zoom-bob")))
	w.zoom.RevokeUser("zoom-bob")
	if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "bob", RevokeGrant: true}); err != nil {
		t.Fatal(err)
	}
	w.wantCredentials()
}

func TestDeregisterRemovesACredentialThatWasNeverRecorded(t *testing.T) {
	w := start(t)
	w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{DropAfter: true})
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_PENDING)
	if _, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"}); err != nil {
		t.Fatal(err)
	}
	w.wantCredentials()
}

func TestRegisterWhileBeingRemoved(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.recall.Fail(http.MethodDelete, credentialsPath, 1, recalltest.Fault{Status: 500})
	_, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann"})
	wantFailure(t, err, codes.Unavailable)
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann")
}

func TestListUsers(t *testing.T) {
	w := start(t)
	w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{Status: 500})
	const n = 7
	for i := range n {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	list := func(state registrarv1.State, size int32) (users []string) {
		request := &registrarv1.ListUsersRequest{PageSize: size, State: state}
		for {
			page, err := w.ListUsers(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			for _, user := range page.GetUsers() {
				users = append(users, user.GetUserId())
				if state != registrarv1.State_STATE_UNSPECIFIED {
					wantState(t, user, state)
				}
			}
			if size > 0 && len(page.GetUsers()) > int(size) {
				t.Errorf("a page of %d users", len(page.GetUsers()))
			}
			if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
				return users
			}
		}
	}
	all := list(registrarv1.State_STATE_UNSPECIFIED, 2)
	if len(all) != n || fmt.Sprint(all) != fmt.Sprint(list(registrarv1.State_STATE_UNSPECIFIED, 0)) {
		t.Errorf("listed %v", all)
	}
	if pending := list(registrarv1.State_STATE_PENDING, 1); fmt.Sprint(pending) != "[user-0]" {
		t.Errorf("pending: %v", pending)
	}
	if active := list(registrarv1.State_STATE_ACTIVE, 3); len(active) != n-1 {
		t.Errorf("active: %v", active)
	}
	_, err := w.ListUsers(t.Context(), &registrarv1.ListUsersRequest{PageToken: "nonsense"})
	if f := wantFailure(t, err, codes.InvalidArgument); f.fields["page_token"] == "" {
		t.Errorf("details: %+v", f)
	}
}

func TestGetAccessToken(t *testing.T) {
	w := start(t)
	w.zoom.SetAccessTokenLifetime(150 * time.Second)
	w.register(byCode("ann", w.code("zoom-ann")))
	ask := func(ttl time.Duration) (*registrarv1.GetAccessTokenResponse, error) {
		request := &registrarv1.GetAccessTokenRequest{UserId: "ann"}
		if ttl >= 0 {
			request.MinTtl = durationpb.New(ttl)
		}
		return w.GetAccessToken(t.Context(), request)
	}
	first, err := ask(-1)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(first.GetExpireTime().AsTime()); !w.zoom.IsLive(first.GetAccessToken()) || left < 2*time.Minute {
		t.Errorf("got a token for %v, live: %v", left, w.zoom.IsLive(first.GetAccessToken()))
	}
	// More than Zoom gives: the youngest there is, and no loop of renewals.
	for range 3 {
		got, err := ask(time.Hour)
		if err != nil || got.GetAccessToken() != first.GetAccessToken() {
			t.Fatalf("asked for an hour: another token, or %v", err)
		}
	}
	if counts := w.zoom.Counts(); counts.Refreshes != 0 {
		t.Errorf("%d renewals of a young token", counts.Refreshes)
	}

	w.age("ann", 140*time.Second)
	second, err := ask(-1)
	if err != nil || second.GetAccessToken() == first.GetAccessToken() || !w.zoom.IsLive(second.GetAccessToken()) {
		t.Fatalf("an old token was not renewed: %v", err)
	}

	w.age("ann", 140*time.Second)
	w.zoom.Fail("/oauth/token", 1, zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"30"}}})
	_, err = ask(-1)
	if f := wantFailure(t, err, codes.Unavailable); f.retryIn < 20*time.Second {
		t.Errorf("retry in %v, want what Zoom asked for", f.retryIn)
	}
	if got, err := ask(0); err != nil || got.GetAccessToken() != second.GetAccessToken() {
		t.Errorf("a caller content with any token: %v", err)
	}

	_, err = w.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "unknown"})
	wantFailure(t, err, codes.NotFound)
}

// age makes the stored token look as if it had been issued that much earlier.
func (w *world) age(user string, by time.Duration) {
	w.t.Helper()
	id := grant.NewID("default", user)
	key := fmt.Sprintf("tp1:{s%03d}:grant:%s", id.Shard(), id)
	client := w.redis.Client()
	for _, field := range []string{"refreshed", "expires"} {
		if err := client.HIncrBy(w.t.Context(), key, field, -by.Milliseconds()).Err(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestGrantThatIsGone(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.zoom.RevokeUser("zoom-ann")
	w.age("ann", 59*time.Minute)
	ask := &registrarv1.GetAccessTokenRequest{UserId: "ann"}
	for range 2 {
		_, err := w.GetAccessToken(t.Context(), ask)
		wantFailure(t, err, codes.FailedPrecondition)
	}
	if counts := w.zoom.Counts(); counts.UnknownPresented != 1 {
		t.Errorf("Zoom was asked %d times about a grant that is gone", counts.UnknownPresented)
	}
	wantState(t, w.get("ann"), registrarv1.State_STATE_REAUTHORIZATION_REQUIRED)
	// The user must consent again.
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
	w.wantCredentials("zoom-ann")
}

func TestBadRequestsNameTheField(t *testing.T) {
	w := start(t)
	long := strings.Repeat("x", 129)
	for name, c := range map[string]struct {
		call  func() error
		field string
	}{
		"no user id": {func() error { _, err := w.RegisterUser(t.Context(), byCode("", "c")); return err }, "user_id"},
		"long user id": {func() error {
			_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: long})
			return err
		}, "user_id"},
		"no grant": {func() error {
			_, err := w.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{UserId: "ann"})
			return err
		}, "grant"},
		"no code": {func() error { _, err := w.RegisterUser(t.Context(), byCode("ann", "")); return err }, "authorization_code.code"},
		"unknown app": {func() error {
			_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann", ZoomApp: "other"})
			return err
		}, "zoom_app"},
		"odd app": {func() error {
			_, err := w.DeregisterUser(t.Context(), &registrarv1.DeregisterUserRequest{UserId: "ann", ZoomApp: "A B"})
			return err
		}, "zoom_app"},
		"huge page": {func() error {
			_, err := w.ListUsers(t.Context(), &registrarv1.ListUsersRequest{PageSize: 1001})
			return err
		}, "page_size"},
		"odd state": {func() error {
			_, err := w.ListUsers(t.Context(), &registrarv1.ListUsersRequest{State: 99})
			return err
		}, "state"},
		"negative ttl": {func() error {
			_, err := w.GetAccessToken(t.Context(), &registrarv1.GetAccessTokenRequest{UserId: "ann", MinTtl: durationpb.New(-1)})
			return err
		}, "min_ttl"},
	} {
		f := wantFailure(t, c.call(), codes.InvalidArgument)
		if f.fields[c.field] == "" || !strings.Contains(f.text, c.field) {
			t.Errorf("%s: %+v, want %s named", name, f, c.field)
		}
	}
	if counts := w.zoom.Counts(); counts.Requests != 0 {
		t.Error("a bad request reached Zoom")
	}
}

func TestCallerThatLeaves(t *testing.T) {
	w := start(t)
	w.zoom.Fail("/oauth/token", 1, zoomtest.Fault{Delay: 300 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	code := w.code("zoom-ann")
	_, err := w.RegisterUser(ctx, byCode("ann", code))
	wantFailure(t, err, codes.DeadlineExceeded)
	// The code was spent for the caller, who finds the result when it asks again.
	wantState(t, w.register(byCode("ann", code)), registrarv1.State_STATE_ACTIVE)
	if counts := w.zoom.Counts(); counts.Exchanges != 1 || counts.SpentCodes != 0 {
		t.Errorf("%+v", counts)
	}
}

func TestRecordThatDoesNotOpenIsInternal(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	id := grant.NewID("default", "ann")
	key := fmt.Sprintf("tp1:{s%03d}:grant:%s", id.Shard(), id)
	if err := w.redis.Client().HSet(t.Context(), key, "secrets", "damaged").Err(); err != nil {
		t.Fatal(err)
	}
	_, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: "ann"})
	wantFailure(t, err, codes.Internal)
}

func TestZoomDoesNotSayWhoseGrantItIs(t *testing.T) {
	w := start(t)
	w.zoom.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 503})
	code := w.code("zoom-ann")
	user := w.register(byCode("ann", code))
	wantState(t, user, registrarv1.State_STATE_PENDING)
	if user.GetZoomUserId() != "" {
		t.Errorf("Zoom user %q, although Zoom did not say", user.GetZoomUserId())
	}
	user = w.register(byCode("ann", code))
	wantState(t, user, registrarv1.State_STATE_ACTIVE)
	if user.GetZoomUserId() != "zoom-ann" {
		t.Errorf("Zoom user %q", user.GetZoomUserId())
	}
}

func TestUserThatSomebodyElseWorksOn(t *testing.T) {
	w := start(t)
	unlock, ok, err := w.store.LockRegistration(t.Context(), grant.NewID("default", "ann"), time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = w.RegisterUser(ctx, byCode("ann", w.code("zoom-ann")))
	wantFailure(t, err, codes.DeadlineExceeded)
	if counts := w.zoom.Counts(); counts.Requests != 0 {
		t.Error("a code was spent while another call had locked the user")
	}
	unlock()
	wantState(t, w.register(byCode("ann", w.code("zoom-ann"))), registrarv1.State_STATE_ACTIVE)
}

func TestFinisherStopsAtAnOutage(t *testing.T) {
	w := start(t)
	w.recall.Fail(http.MethodPost, credentialsPath, -1, recalltest.Fault{Status: 503})
	for i := range 5 {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	before := w.recall.Counts().Requests
	w.finish(func() bool {
		return w.logs.FilterMessage("registrations not continued; retry in the next round").Len() >= 3
	})
	if asked := w.recall.Counts().Requests - before; asked > 2*w.logs.FilterMessage("registrations not continued; retry in the next round").Len()+2 {
		t.Errorf("%d requests to a Recall that is down", asked)
	}
}
