// Package tokenserver is the public side: it hands a user's access token to
// Recall at the callback URL, hears from Zoom when a user has removed the app,
// and keeps every grant's token fresh.
//
// [New] makes the HTTP handler, in front of a [Cache] of opened records;
// [Refresher] is the loop. The callback's contract is Recall's (docs.recall.ai,
// customer-managed OAuth): GET, the token as plain text, good for at least 120
// seconds.
package tokenserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/telemetry"
)

// TokenSource decides which token may be handed out, and renews it first if need
// be; see [renewal.Renewer].
type TokenSource interface {
	// CanServe reports whether serving may be handed out as it is, to somebody who
	// needs the token for ttl.
	CanServe(serving *grant.ServingRecord, ttl time.Duration, now time.Time) bool
	EnsureFresh(ctx context.Context, id grant.ID, serving grant.ServingRecord, ttl time.Duration) (grant.ServingRecord, error)
}

// Config is what the handler needs. Every field without a default is required.
type Config struct {
	Cache   *Cache
	Tokens  TokenSource
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: nothing is measured

	// Verifier checks that a request was signed by Recall. Nil: the secret in
	// the URL is the only proof.
	Verifier *Verifier
	// Events handles POST /zoom/events. Nil: there is no such path.
	Events http.Handler
	// Timeout is how long a callback may take, renewal included: less than
	// Recall waits. 0: 4.5 s.
	Timeout time.Duration
	// MaxWaiting is how many callbacks may wait for a renewal at once. 0: 1000.
	MaxWaiting int
}

// Handler answers callbacks. It is safe for concurrent use.
type Handler struct {
	Config
	metrics *metrics
	decoy   callback.Address
	waiting chan struct{} // as many as wait for a renewal
}

// New returns the handler of everything on the public side. It does no I/O.
func New(c Config) *Handler {
	if c.Timeout == 0 {
		c.Timeout = 4500 * time.Millisecond
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 1000
	}
	waiting := make(chan struct{}, c.MaxWaiting)
	return &Handler{
		Config:  c,
		metrics: newMetrics(c.Metrics, func() float64 { return float64(len(waiting)) }),
		decoy:   callback.NewAddress(grant.NewID("", "")), // nobody's: a user's id is not empty
		waiting: waiting,
	}
}

var (
	errUnknown   = errors.New("no such callback") // or the wrong secret, or no callback at all
	errSignature = errors.New("not signed by Recall")
	errMethod    = errors.New("method not allowed")
	errCrowded   = errors.New("too many callbacks wait for a renewal")
	errPanic     = errors.New("internal error")
)

// The values of headers that every answer has. They are shared, so that an
// answer makes no garbage of them; net/http does not change them.
var (
	plainText = []string{"text/plain; charset=utf-8"}
	noStore   = []string{"no-store"}
)

// lengths are the values of Content-Length that tokens have, shared too. Zoom's
// have 700 to 900 bytes.
var lengths = func() (values [2048][]string) {
	for n := range values {
		values[n] = []string{strconv.Itoa(n)}
	}
	return values
}()

func contentLength(n int) []string {
	if n < len(lengths) {
		return lengths[n]
	}
	return []string{strconv.Itoa(n)}
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	defer h.contain(w, r, began)
	if r.URL.Path == eventsPath && h.Events != nil {
		h.Events.ServeHTTP(w, r)
		return
	}
	record, err := h.serve(r, began)
	if err != nil {
		h.refuse(w, r, err, began)
		return
	}
	header := w.Header()
	header["Content-Type"] = plainText
	header["Cache-Control"] = noStore
	token := record.Access.Reveal()
	header["Content-Length"] = contentLength(len(token))
	_, _ = io.WriteString(w, token) // nobody is left to tell
	h.metrics.served(record.Expires, began)
}

// contain keeps a fault of ours from ending more than its request. The words of
// a panic may quote a request, so they are not told.
func (h *Handler) contain(w http.ResponseWriter, r *http.Request, began time.Time) {
	fault := recover()
	if fault == nil {
		return
	}
	if fault == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as net/http does
		panic(fault)
	}
	h.Log.Error("a request panicked", zap.String("type", fmt.Sprintf("%T", fault)), zap.Stack("stack"))
	h.refuse(w, r, errPanic, began)
}

// serve finds the token that the request may have.
func (h *Handler) serve(r *http.Request, now time.Time) (*record, error) {
	path := r.URL.Path
	if r.URL.RawPath != "" {
		path = "" // a callback's has nothing to escape
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && strings.HasPrefix(path, callback.Prefix) {
		return nil, errMethod
	}
	address, ok := callback.ParsePath(path)
	if !ok {
		address = h.decoy // takes the same way as an unknown one, and the same time
	}
	record, fresh, err := h.Cache.get(r.Context(), address.ID)
	if err == nil && !address.Matches(record.Secrets, now) {
		if fresh {
			return nil, errUnknown
		}
		// The secret may be newer than what is cached. And whoever guesses must not
		// learn from the time it takes what is cached: every guess is one read.
		record, err = h.Cache.again(r.Context(), address.ID)
		if err == nil && !address.Matches(record.Secrets, now) {
			return nil, errUnknown
		}
	}
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil, errUnknown
	case err != nil:
		return nil, err
	case h.Verifier != nil && !h.Verifier.Verify(r.Header, now):
		return nil, errSignature
	case h.Tokens.CanServe(&record.ServingRecord, grant.MinTTL, now):
		record.handOut(now)
		return record, nil
	}
	return h.renewed(r.Context(), address.ID, record, now.Add(h.Timeout))
}

// renewed is a record whose token was renewed, if that had to be.
func (h *Handler) renewed(ctx context.Context, id grant.ID, r *record, deadline time.Time) (*record, error) {
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return nil, errCrowded
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	ctx, span := telemetry.Tracer().Start(ctx, "callback", trace.WithAttributes(attribute.String("grant", string(id))))
	defer span.End()
	serving, err := h.Tokens.EnsureFresh(ctx, id, r.ServingRecord, grant.MinTTL)
	if err != nil {
		return nil, err
	}
	if serving.Expires.Equal(r.Expires) {
		r.handOut(time.Now())
	}
	return newRecord(serving, 0), nil
}

// refuse is the one place where errors become HTTP.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error, began time.Time) {
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
	case errors.Is(err, errPanic):
		status, outcome, text = http.StatusInternalServerError, "panic", "internal error"
	case errors.Is(err, errCrowded):
		outcome = "crowded"
	case errors.As(err, &backoff):
		wait = backoff.For
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		outcome = "abandoned"
	}
	if outcome == "unavailable" {
		h.Log.Warn("a callback could not be served", zap.Error(err))
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second))))
	}
	w.Header()["Cache-Control"] = noStore
	http.Error(w, text, status)
	h.metrics.refused(outcome, began)
}
