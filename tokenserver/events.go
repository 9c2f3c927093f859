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

// EventsApp identifies the events of a Zoom app.
type EventsApp struct {
	Name        string
	ClientID    string
	SecretToken secret.Text // the app's Secret Token; empty: it has no events
}

// Deauthorizer marks for removal the grants of users who have removed an app at
// Zoom; see [store.Store].
//
// ByZoomUser returns the grants of a Zoom user; none is no error. Deauthorize is
// atomic and durable, and may be repeated: it returns [grant.ErrDeleting] or
// [grant.ErrNotFound] if the grant is being or was removed. At is a time by Zoom's
// clock; if the user consented after it, Deauthorize returns [grant.ErrFresh].
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
	return OutcomeUncounted
}

// Events handles Zoom's webhook (developers.zoom.us, webhooks). It passes Zoom's
// validation of the endpoint, and marks the grants of a user who has removed the
// app, durably, before it responds. The registrar removes them.
type Events struct {
	Grants Deauthorizer
	Apps   func() []EventsApp // the current apps
	Log    *zap.Logger

	events *prometheus.CounterVec
}

// NewEvents returns the handler of POST /zoom/events.
func NewEvents(grants Deauthorizer, apps func() []EventsApp, log *zap.Logger, registerer prometheus.Registerer) *Events {
	return &Events{Grants: grants, Apps: apps, Log: log, events: newEventsCounter(registerer)}
}

// event is the part of Zoom's request that is used.
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
	respond := func() { http.Error(w, text, status) }
	if !slices.ContainsFunc(e.Apps(), func(app EventsApp) bool { return !app.SecretToken.IsZero() }) {
		status, text = http.StatusNotFound, "not found" // as for any unknown path
		respond()
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		status, text = http.StatusMethodNotAllowed, "use POST"
		respond()
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	if err != nil {
		status, text = http.StatusBadRequest, "the body is cut short or too long"
		respond()
		return
	}
	app, ok := e.sender(r.Header, body, time.Now())
	if !ok {
		respond()
		return
	}
	var got event
	if err := json.Unmarshal(body, &got); err != nil {
		status, text = http.StatusBadRequest, "not an event"
		respond()
		return
	}
	switch got.Event {
	case "endpoint.url_validation":
		kind, outcome = got.Event, "done"
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{ // fails if the caller has left
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
	case err != nil: // Zoom repeats the request
		e.Log.Error("removal of the app not recorded; Zoom will repeat the event", zap.String("app", app.Name), zap.Error(err))
		status, text = http.StatusServiceUnavailable, "cannot record the event now"
		w.Header().Set("Retry-After", "60")
	default:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	respond()
}

// sender returns the app whose secret signed the request. The timestamp must be
// within five minutes of now.
func (e *Events) sender(header http.Header, body []byte, now time.Time) (EventsApp, bool) {
	stamp, signature := header.Get("X-Zm-Request-Timestamp"), header.Get("X-Zm-Signature")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return EventsApp{}, false
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return EventsApp{}, false
	}
	for _, app := range e.Apps() {
		if !app.SecretToken.IsZero() && hmac.Equal([]byte(signature), []byte("v0="+sign(app.SecretToken, "v0:"+stamp+":"+string(body)))) {
			return app, true
		}
	}
	return EventsApp{}, false
}

// sign returns Zoom's signature of a text: HMAC-SHA256 with the app's Secret
// Token, in hex.
func sign(secretToken secret.Text, text string) string {
	mac := hmac.New(sha256.New, []byte(secretToken.Reveal()))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// errNotOurs means that the event belongs to another app, or is incomplete.
var errNotOurs = errors.New("payload.client_id is not this app's, or payload.user_id or payload.deauthorization_time is missing")

// deauthorize marks the user's grants to the app for removal. Zoom may send an event
// more than once, and after a new consent of the user.
func (e *Events) deauthorize(ctx context.Context, app EventsApp, got event) (outcome string, err error) {
	if got.Payload.ClientID != app.ClientID || got.Payload.User == "" || got.Payload.DeauthorizationAt.IsZero() {
		e.Log.Error("event app_deauthorized is of another app or incomplete; no grant changed", zap.String("app", app.Name))
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
			log.Info("user removed the app at Zoom; grant marked for removal")
		case errors.Is(err, grant.ErrFresh):
			log.Info("user removed the app at Zoom but consented later; grant kept")
		case errors.Is(err, grant.ErrDeleting), errors.Is(err, grant.ErrNotFound): // a repeated event
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
