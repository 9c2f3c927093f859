package tokenserver

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

const (
	eventsPath = "/zoom/events"
	maxEvent   = 64 << 10                // bytes; Zoom's have some hundred
	eventTime  = 2500 * time.Millisecond // Zoom waits 3 s (docs, webhooks)
)

// App is what a Zoom app's events are known by.
type App struct {
	Name        string
	ClientID    string
	SecretToken secret.Text // the app's Secret Token; empty: it has no events
}

// Deauthorizer marks for removal the grants of users who have removed an app at
// Zoom; see [store.Store].
type Deauthorizer interface {
	ByZoomUser(ctx context.Context, app, zoomUser string) ([]grant.ID, error)
	Deauthorize(ctx context.Context, id grant.ID, at time.Time) error
}

// zoomEvents mounts [Events] as a protocol. It has metrics of its own.
type zoomEvents struct{ http.Handler }

// Name implements [Protocol].
func (zoomEvents) Name() string { return "zoom_events" }

// Pattern implements [Protocol].
func (zoomEvents) Pattern() string { return eventsPath }

// Serve implements [Protocol].
func (e zoomEvents) Serve(w http.ResponseWriter, r *http.Request, _ time.Time) Outcome {
	e.ServeHTTP(w, r)
	return Uncounted
}

// Events handles Zoom's webhook (developers.zoom.us, webhooks): it proves to
// Zoom that the endpoint is ours, and marks the grants of a user who has removed
// the app, durably, before it responds. The registrar removes them.
type Events struct {
	Grants Deauthorizer
	Apps   func() []App // as they are now
	Log    *zap.Logger

	events *prometheus.CounterVec
}

// NewEvents returns the handler of POST /zoom/events.
func NewEvents(grants Deauthorizer, apps func() []App, log *zap.Logger, registerer prometheus.Registerer) *Events {
	return &Events{Grants: grants, Apps: apps, Log: log, events: newEventsCounter(registerer)}
}

// event is what Zoom sends, as far as it matters here.
type event struct {
	Event   string `json:"event"`
	Payload struct {
		PlainToken        string    `json:"plainToken"`
		User              string    `json:"user_id"`
		ClientID          string    `json:"client_id"`
		DeauthorizationAt time.Time `json:"deauthorization_time"`
	} `json:"payload"`
}

// ServeHTTP implements [http.Handler].
func (e *Events) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["Cache-Control"] = noStore
	kind, outcome, status, text := "unknown", "refused", http.StatusUnauthorized, "signature missing, wrong or too old"
	defer func() { e.events.WithLabelValues(kind, outcome).Inc() }()
	answer := func() { http.Error(w, text, status) }
	if !slices.ContainsFunc(e.Apps(), func(app App) bool { return !app.SecretToken.IsZero() }) {
		status, text = http.StatusNotFound, "not found" // as any path that is not there
		answer()
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		status, text = http.StatusMethodNotAllowed, "use POST"
		answer()
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	if err != nil {
		status, text = http.StatusBadRequest, "the body is cut short or too long"
		answer()
		return
	}
	app, ok := e.sender(r.Header, body, time.Now())
	if !ok {
		answer()
		return
	}
	var got event
	if err := json.Unmarshal(body, &got); err != nil {
		status, text = http.StatusBadRequest, "not an event"
		answer()
		return
	}
	switch got.Event {
	case "endpoint.url_validation":
		kind, outcome = got.Event, "done"
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{ // nobody is left to tell
			"plainToken": got.Payload.PlainToken, "encryptedToken": sign(app.SecretToken, got.Payload.PlainToken),
		})
		return
	case "app_deauthorized":
		kind = got.Event
		ctx, cancel := context.WithTimeout(r.Context(), eventTime)
		defer cancel()
		outcome, err = e.deauthorize(ctx, app, got)
	default:
		outcome = "ignored"
	}
	switch {
	case errors.Is(err, errNotOurs):
		status, text = http.StatusBadRequest, err.Error()
	case err != nil: // Zoom sends it again
		e.Log.Error("a user's removal of the app could not be recorded; Zoom will tell again", zap.String("app", app.Name), zap.Error(err))
		status, text = http.StatusServiceUnavailable, "cannot be recorded now"
		w.Header().Set("Retry-After", "60")
	default:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer()
}

// sender is the app whose secret has signed the request, within the last five
// minutes or, as clocks differ, the next.
func (e *Events) sender(header http.Header, body []byte, now time.Time) (App, bool) {
	stamp, signature := header.Get("X-Zm-Request-Timestamp"), header.Get("X-Zm-Signature")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return App{}, false
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return App{}, false
	}
	for _, app := range e.Apps() {
		if !app.SecretToken.IsZero() && hmac.Equal([]byte(signature), []byte("v0="+sign(app.SecretToken, "v0:"+stamp+":"+string(body)))) {
			return app, true
		}
	}
	return App{}, false
}

// sign is how Zoom signs: HMAC-SHA256 with the app's Secret Token, in hex.
func sign(secretToken secret.Text, text string) string {
	mac := hmac.New(sha256.New, []byte(secretToken.Reveal()))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// errNotOurs means: the event says something of another app, or nothing.
var errNotOurs = errors.New("payload.client_id is not this app's, or payload.user_id or payload.deauthorization_time is missing")

// deauthorize marks what the user has granted to the app. Zoom tells more than
// once, and in any order against a new consent.
func (e *Events) deauthorize(ctx context.Context, app App, got event) (outcome string, err error) {
	if got.Payload.ClientID != app.ClientID || got.Payload.User == "" || got.Payload.DeauthorizationAt.IsZero() {
		e.Log.Error("Zoom tells that a user has removed an app, but not this one or not who or when", zap.String("app", app.Name))
		return "refused", errNotOurs
	}
	ids, err := e.Grants.ByZoomUser(ctx, app.Name, got.Payload.User)
	if err != nil {
		return "failed", err
	}
	outcome = "ignored"
	for _, id := range ids {
		err := e.Grants.Deauthorize(ctx, id, got.Payload.DeauthorizationAt)
		log := e.Log.With(zap.String("grant", string(id)), zap.String("app", app.Name))
		switch {
		case err == nil:
			outcome = "done"
			log.Info("the user has removed the app at Zoom: marked for removal")
		case errors.Is(err, grant.ErrFresh):
			log.Info("the user has removed the app at Zoom, but has consented again since")
		case errors.Is(err, grant.ErrDeleting), errors.Is(err, grant.ErrNotFound): // told before
		default:
			return "failed", err
		}
	}
	return outcome, nil
}

// newEventsCounter returns the counter of requests to Zoom's webhook.
func newEventsCounter(registerer prometheus.Registerer) *prometheus.CounterVec {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenprovider_zoom_events_total",
		Help: "Requests to Zoom's webhook, by kind of event and outcome.",
	}, []string{"event", "outcome"})
	for _, outcome := range []string{"done", "ignored", "refused", "failed"} {
		events.WithLabelValues("app_deauthorized", outcome)
	}
	registerer.MustRegister(events)
	return events
}
