// Package tokenserver is the public side: it hands a user's access token to
// Recall at the callback URL, and keeps every grant's token fresh.
//
// [New] makes the HTTP handler, [Refresher] is the loop. The callback's
// contract is Recall's (docs.recall.ai, customer-managed OAuth): GET, the token
// as plain text, good for at least 120 seconds.
package tokenserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
)

// Grants reads what a callback needs; see [store.Store.Serving].
type Grants interface {
	Serving(ctx context.Context, id grant.ID) (grant.Serving, error)
}

// HandOuter decides which token may be handed out, and renews it first if need
// be; see [rotation.Rotator.HandOut].
type HandOuter interface {
	HandOut(ctx context.Context, id grant.ID, serving grant.Serving, ttl time.Duration) (grant.Serving, error)
}

// Config is what the handler needs. Every field without a default is required.
type Config struct {
	Grants    Grants
	HandOuter HandOuter
	Log       *zap.Logger
	Metrics   prometheus.Registerer

	// Verifier checks that a request was signed by Recall. Nil: the secret in
	// the URL is the only proof.
	Verifier *Verifier
	// Patience is how long a callback may take, renewal included: less than
	// Recall waits. 0: 4.5 s.
	Patience time.Duration
}

// Handler answers callbacks. It is safe for concurrent use.
type Handler struct {
	Config
	answers *prometheus.CounterVec
	decoy   callback.Address
}

// New returns the handler of everything on the public side. It does no I/O.
func New(c Config) *Handler {
	if c.Patience == 0 {
		c.Patience = 4500 * time.Millisecond
	}
	h := &Handler{
		Config: c,
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenprovider_callbacks_total",
			Help: "Callbacks answered, by outcome.",
		}, []string{"outcome"}),
		decoy: callback.NewAddress(grant.NewID("", "")), // nobody's: a user's id is not empty
	}
	c.Metrics.MustRegister(h.answers)
	return h
}

var (
	errUnknown   = errors.New("no such callback") // or the wrong secret, or no callback at all
	errSignature = errors.New("not signed by Recall")
	errMethod    = errors.New("method not allowed")
)

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serving, err := h.serve(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	h.answers.WithLabelValues("served").Inc()
	token := serving.Access.Reveal()
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Length", strconv.Itoa(len(token)))
	_, _ = io.WriteString(w, token) // nobody is left to tell
}

// serve finds the token that the request may have.
func (h *Handler) serve(r *http.Request) (grant.Serving, error) {
	path := r.URL.EscapedPath()
	if strings.HasPrefix(path, callback.Prefix) && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return grant.Serving{}, errMethod
	}
	address, ok := callback.ParsePath(path)
	if !ok {
		address = h.decoy // takes the same way as an unknown one, and the same time
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.Patience)
	defer cancel()
	serving, err := h.Grants.Serving(ctx, address.ID)
	if err != nil && !errors.Is(err, grant.ErrNotFound) {
		return grant.Serving{}, err
	}
	if !address.Opens(serving.Keys, time.Now()) {
		return grant.Serving{}, errUnknown
	}
	if h.Verifier != nil && !h.Verifier.Verify(r.Header) {
		return grant.Serving{}, errSignature
	}
	return h.HandOuter.HandOut(ctx, address.ID, serving, grant.MinTTL)
}

// refuse is the one place where errors become HTTP.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var backoff *grant.BackoffError
	status, outcome, text, wait := http.StatusServiceUnavailable, "unavailable", "no access token can be had now", time.Second
	switch {
	case errors.Is(err, errMethod):
		w.Header().Set("Allow", "GET, HEAD")
		status, outcome, text = http.StatusMethodNotAllowed, "method", "use GET"
	case errors.Is(err, errUnknown), errors.Is(err, grant.ErrDeleting), errors.Is(err, grant.ErrNotFound):
		status, outcome, text = http.StatusNotFound, "unknown", "not found"
	case errors.Is(err, errSignature):
		status, outcome, text = http.StatusUnauthorized, "signature", "signature missing, wrong or too old"
	case errors.Is(err, grant.ErrReauthorize):
		status, outcome, text = http.StatusGone, "reauthorize", "the user must authorize again"
	case errors.As(err, &backoff):
		wait = backoff.For
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		outcome = "abandoned"
	}
	h.answers.WithLabelValues(outcome).Inc()
	if outcome == "unavailable" {
		h.Log.Warn("a callback could not be served", zap.Error(err))
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second))))
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, text, status)
}
