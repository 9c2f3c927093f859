package tokenserver_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/tokenserver"
)

const secretToken, zoomClient, zoomUser = "webhook-secret-token", "zoom-client", "zoom-ann"

// users is a store of the grants of zoomUser.
type users struct {
	ids   []grant.ID // of zoomUser
	err   error      // of Deauthorize
	down  error      // of ByZoomUser
	finds []string   // app and Zoom user of each ByZoomUser
	gone  []grant.ID
	at    time.Time
}

func (u *users) ByZoomUser(_ context.Context, app, user string) ([]grant.ID, error) {
	u.finds = append(u.finds, app+" "+user)
	if user != zoomUser || u.down != nil {
		return nil, u.down
	}
	return u.ids, nil
}

func (u *users) Deauthorize(ctx context.Context, id grant.ID, at time.Time) error {
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 3*time.Second {
		return errors.New("the deadline is longer than Zoom waits")
	}
	if u.err != nil {
		return u.err
	}
	u.gone, u.at = append(u.gone, id), at
	return nil
}

func (u *users) events(log *zap.Logger) http.Handler {
	apps := []tokenserver.EventsApp{
		{Name: "silent", ClientID: "other-client"}, // without a Secret Token: no signature is valid
		{Name: "default", ClientID: zoomClient, SecretToken: secret.New(secretToken)},
	}
	return tokenserver.NewEvents(u, func() []tokenserver.EventsApp { return apps }, log, prometheus.NewRegistry())
}

// zoomSignature signs as Zoom does (developers.zoom.us, webhooks).
func zoomSignature(timestamp, body string) string {
	mac := hmac.New(sha256.New, []byte(secretToken))
	mac.Write([]byte("v0:" + timestamp + ":" + body))
	return "v0=" + hex.EncodeToString(mac.Sum(nil))
}

func deauthorization(at time.Time) string {
	return fmt.Sprintf(`{"event":"app_deauthorized","event_ts":1,"payload":{"account_id":"a","user_id":%q,"signature":"s","deauthorization_time":%q,"client_id":%q}}`,
		zoomUser, at.UTC().Format("2006-01-02T15:04:05.000Z"), zoomClient)
}

func post(handler http.Handler, header http.Header, body string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodPost, "/zoom/events", strings.NewReader(body))
	request.Header = header
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, request)
	return w
}

// signed posts a body as Zoom does.
func signed(handler http.Handler, at time.Time, body string) *httptest.ResponseRecorder {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	return post(handler, http.Header{"X-Zm-Request-Timestamp": {timestamp}, "X-Zm-Signature": {zoomSignature(timestamp, body)}}, body)
}

func TestURLValidation(t *testing.T) {
	w := signed((&users{}).events(zap.NewNop()), time.Now(), `{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}`)
	var response struct{ PlainToken, EncryptedToken string }
	if err := json.Unmarshal(w.Body.Bytes(), &response); err != nil || w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("responded %d, %v", w.Code, err)
	}
	mac := hmac.New(sha256.New, []byte(secretToken))
	mac.Write([]byte("qgg8vlvZRS6UYooatFL8Aw"))
	if response.PlainToken != "qgg8vlvZRS6UYooatFL8Aw" || response.EncryptedToken != hex.EncodeToString(mac.Sum(nil)) {
		t.Errorf("responded %+v", response)
	}
}

func TestDeauthorizationMarksEveryGrantOfTheUser(t *testing.T) {
	u := &users{ids: []grant.ID{grant.NewID("default", "ann"), grant.NewID("default", "ann-too")}}
	at := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	core, logs := observer.New(zap.DebugLevel)
	if w := signed(u.events(zap.New(core)), time.Now(), deauthorization(at)); w.Code != 204 {
		t.Fatalf("responded %d", w.Code)
	}
	if !slices.Equal(u.gone, u.ids) || !u.at.Equal(at) || !slices.Equal(u.finds, []string{"default " + zoomUser}) {
		t.Errorf("marked %v as of %v, found by %v", u.gone, u.at, u.finds)
	}
	if logs.FilterMessageSnippet("marked for removal").Len() != 2 {
		t.Error("not logged for each grant")
	}
}

func TestDeauthorizationThatChangesNothingIsAcknowledged(t *testing.T) {
	for name, u := range map[string]*users{
		"consented again":  {ids: []grant.ID{"x"}, err: grant.ErrFresh},
		"repeated":         {ids: []grant.ID{"x"}, err: grant.ErrDeleting},
		"removed meantime": {ids: []grant.ID{"x"}, err: grant.ErrNotFound},
		"of no user":       {},
	} {
		if w := signed(u.events(zap.NewNop()), time.Now(), deauthorization(time.Now())); w.Code != 204 {
			t.Errorf("%s: responded %d", name, w.Code)
		}
	}
}

func TestDeauthorizationThatCannotBeRecordedIsRetried(t *testing.T) {
	for _, u := range []*users{{ids: []grant.ID{"x"}, err: errors.New("down")}, {down: errors.New("down")}} {
		if w := signed(u.events(zap.NewNop()), time.Now(), deauthorization(time.Now())); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("responded %d", w.Code)
		}
	}
}

func TestEventsRefuse(t *testing.T) {
	u := &users{ids: []grant.ID{"x"}}
	handler := u.events(zap.NewNop())
	now, body := time.Now(), deauthorization(time.Now())
	stamp := strconv.FormatInt(now.Unix(), 10)
	for name, c := range map[string]struct {
		got  *httptest.ResponseRecorder
		want int
	}{
		"unsigned":                  {post(handler, http.Header{"X-Zm-Request-Timestamp": {stamp}}, body), 401},
		"no timestamp":              {post(handler, http.Header{"X-Zm-Signature": {zoomSignature("", body)}}, body), 401},
		"another body":              {post(handler, http.Header{"X-Zm-Request-Timestamp": {stamp}, "X-Zm-Signature": {zoomSignature(stamp, body)}}, body+" "), 401},
		"another time":              {post(handler, http.Header{"X-Zm-Request-Timestamp": {stamp + "0"}, "X-Zm-Signature": {zoomSignature(stamp, body)}}, body), 401},
		"six minutes old":           {signed(handler, now.Add(-6*time.Minute), body), 401},
		"six minutes early":         {signed(handler, now.Add(6*time.Minute), body), 401},
		"not JSON":                  {signed(handler, now, "hello"), 400},
		"another app's":             {signed(handler, now, strings.Replace(body, zoomClient, "other-client", 1)), 400},
		"no user":                   {signed(handler, now, strings.Replace(body, zoomUser, "", 1)), 400},
		"no time":                   {signed(handler, now, `{"event":"app_deauthorized","payload":{"user_id":"zoom-ann","client_id":"zoom-client"}}`), 400},
		"too long":                  {signed(handler, now, body+strings.Repeat(" ", 64<<10)), 400},
		"an event of another kind":  {signed(handler, now, `{"event":"meeting.started"}`), 204},
		"signed with an empty key":  {post(handler, http.Header{"X-Zm-Request-Timestamp": {stamp}, "X-Zm-Signature": {emptyKey(stamp, body)}}, body), 401},
		"validation without secret": {post(handler, http.Header{"X-Zm-Request-Timestamp": {stamp}}, `{"event":"endpoint.url_validation","payload":{"plainToken":"x"}}`), 401},
	} {
		if c.got.Code != c.want {
			t.Errorf("%s: responded %d, want %d", name, c.got.Code, c.want)
		}
	}
	if len(u.finds) != 0 {
		t.Errorf("grants were looked up: %v", u.finds)
	}
	request := httptest.NewRequest(http.MethodGet, "/zoom/events", nil)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, request)
	if w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET: responded %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

// TestEventTimestamps: an event is accepted for exactly five minutes before and after
// its timestamp.
func TestEventTimestamps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := (&users{}).events(zap.NewNop())
		for age, want := range map[time.Duration]int{
			5 * time.Minute: 204, 5*time.Minute + time.Second: 401, -5 * time.Minute: 204, -5*time.Minute - time.Second: 401,
		} {
			if w := signed(handler, time.Now().Add(-age), `{"event":"meeting.started"}`); w.Code != want {
				t.Errorf("%v old: responded %d, want %d", age, w.Code, want)
			}
		}
	})
}

func emptyKey(stamp, body string) string {
	mac := hmac.New(sha256.New, nil)
	mac.Write([]byte("v0:" + stamp + ":" + body))
	return "v0=" + hex.EncodeToString(mac.Sum(nil))
}

func TestNoEventsWithoutASecretToken(t *testing.T) {
	f := start(t, nil, nil)
	if got := do(t, http.MethodPost, f.server.URL+"/zoom/events", nil); got.status != 404 {
		t.Errorf("responded %d, want 404", got.status)
	}
	none := tokenserver.NewEvents(&users{}, func() []tokenserver.EventsApp { return []tokenserver.EventsApp{{Name: "silent", ClientID: "x"}} },
		zap.NewNop(), prometheus.NewRegistry())
	f = startWith(t, tokenserver.Config{Tokens: liveTokens{}, Events: none})
	if got := do(t, http.MethodPost, f.server.URL+"/zoom/events", nil); got.status != 404 || got.body != "not found\n" {
		t.Errorf("apps without any: responded %d, want 404", got.status)
	}
	f = startWith(t, tokenserver.Config{Tokens: liveTokens{}, Events: (&users{}).events(zap.NewNop())})
	if got := do(t, http.MethodPost, f.server.URL+"/zoom/events", nil); got.status != 401 {
		t.Errorf("with events, unsigned: responded %d, want 401", got.status)
	}
}
