package tokenserver_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/tokenserver"
)

const fuzzKey, otherKey = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_b3RoZXJvdGhlcm90aGVyb3RoZXI="

// FuzzVerifier compares the verifier with the Standard Webhooks library: they must
// agree on all headers.
func FuzzVerifier(f *testing.F) {
	now := time.Now()
	var libraries []*standardwebhooks.Webhook
	var secrets []secret.Text
	for _, key := range []string{fuzzKey, otherKey} {
		library, err := standardwebhooks.NewWebhook(key)
		if err != nil {
			f.Fatal(err)
		}
		libraries, secrets = append(libraries, library), append(secrets, secret.New(key))
	}
	verifier, err := tokenserver.NewVerifier(secrets)
	if err != nil {
		f.Fatal(err)
	}
	right, err := libraries[0].Sign("msg_1", now, nil)
	if err != nil {
		f.Fatal(err)
	}
	// "now" and "sign" stand for what a corpus on disk cannot hold.
	f.Add("msg_1", "now", "sign")
	f.Add("msg_1", "now", "v1,AAAA sign")
	f.Add("msg_1", "now", "v2,sign")
	f.Add("msg_1", "now", "sign,more")
	f.Add("", "now", "sign")
	f.Add("msg_1", "", "sign")
	f.Add("msg_1", "+now", "sign")
	f.Add("msg_1", "1614265330", "v1,v48jdbgvh29KJz2Qc+ghw8G6vG3nAKnujWBg8oM/62A=")
	f.Add("msg_2", "now", "sign")
	f.Add("msg_1", "99999999999999999999", "sign")
	f.Fuzz(func(t *testing.T, id, timestamp, signature string) {
		header := http.Header{
			"Webhook-Id":        {id},
			"Webhook-Timestamp": {strings.ReplaceAll(timestamp, "now", strconv.FormatInt(now.Unix(), 10))},
			"Webhook-Signature": {strings.ReplaceAll(signature, "sign", right)},
		}
		want := false
		for _, library := range libraries {
			want = want || library.Verify(nil, header) == nil
		}
		if got := verifier.Verify(header, time.Now()); got != want {
			t.Errorf("Verify = %v, the library returns %v", got, want)
		}
	})
}

// FuzzURL requests arbitrary URLs where one credential exists: only its own URL
// gets the token, nothing panics, and all other responses are equal.
func FuzzURL(f *testing.F) {
	address := callback.Address{ID: grant.NewID("default", "ann"), Secret: secret.New(strings.Repeat("s", 43))}
	source := &records{id: address.ID, serving: grant.ServingRecord{
		State: grant.StateActive, Access: secret.New(token), Expires: time.Now().Add(time.Hour), Secrets: []grant.CallbackSecret{address.CallbackSecret()},
	}}
	cache, err := tokenserver.NewCache(source, 10, zap.NewNop())
	if err != nil {
		f.Fatal(err)
	}
	cache.Synced()
	handler := tokenserver.New(tokenserver.Config{Cache: cache, Tokens: liveTokens{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	good := path(address)
	for _, seed := range []string{
		good, good + "/", good + "?x=y", good[:len(good)-1], "/", "//", "/callback", "/callback/" + string(address.ID) + "/",
		"/callback/../callback/" + string(address.ID), strings.Replace(good, "s", "%73", 1), "/zoom/events", good + "#x", "/callback/\x00/x", "*",
	} {
		f.Add(http.MethodGet, seed)
		f.Add(http.MethodHead, seed)
		f.Add(http.MethodPost, seed)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		request, err := http.NewRequestWithContext(t.Context(), method, target, nil)
		if err != nil {
			return // net/http rejects it too
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, request)
		read := method == http.MethodGet || method == http.MethodHead || method == ""
		right := request.URL.Path == good && request.URL.RawPath == ""
		switch w.Code {
		case http.StatusOK:
			if !right || !read || w.Body.String() != token {
				t.Errorf("%s %q got the token", method, target)
			}
		case http.StatusNotFound:
			if right && read || w.Body.String() != "not found\n" {
				t.Errorf("%s %q: responded 404, %q", method, target, w.Body)
			}
		case http.StatusMethodNotAllowed:
			if read || !strings.HasPrefix(request.URL.Path, callback.Prefix) {
				t.Errorf("%s %q: responded 405", method, target)
			}
		default:
			t.Errorf("%s %q: responded %d", method, target, w.Code)
		}
	})
}

// FuzzEvents sends arbitrary bodies to Zoom's webhook, signed and unsigned.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", "[]", `"x"`, `{"event":1}`, `{"event":"endpoint.url_validation","payload":{"plainToken":"q"}}`,
		deauthorization(time.Now()), `{"event":"app_deauthorized","payload":{"deauthorization_time":"yesterday"}}`,
		`{"event":"app_deauthorized","payload":{}}`, `{"event":"meeting.started","payload":{"object":{}}}`, strings.Repeat("[", 1000),
	} {
		f.Add(true, "now", seed)
		f.Add(false, "now", seed)
		f.Add(true, "0", seed)
	}
	f.Fuzz(func(t *testing.T, signed bool, timestamp, body string) {
		users := &users{}
		timestamp = strings.ReplaceAll(timestamp, "now", strconv.FormatInt(time.Now().Unix(), 10))
		header := http.Header{"X-Zm-Request-Timestamp": {timestamp}}
		if signed {
			header.Set("X-Zm-Signature", zoomSignature(timestamp, body))
		}
		w := post(users.events(zap.NewNop()), header, body)
		seconds, err := strconv.ParseInt(timestamp, 10, 64)
		age := time.Since(time.Unix(seconds, 0))
		fresh := err == nil && age < 5*time.Minute && age > -5*time.Minute
		if allowed := signed && fresh; !allowed && (w.Code < 300 || len(users.finds) > 0) {
			t.Errorf("signed %v, fresh %v: responded %d", signed, fresh, w.Code)
		}
		if w.Code >= 500 {
			t.Errorf("responded %d", w.Code)
		}
	})
}
