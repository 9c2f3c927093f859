// Package tokenserver serves access tokens to bot vendors over public HTTP. It also
// receives Zoom's webhook, and starts the renewals that are due.
//
// A request passes two layers. A [Protocol] checks the request's proof, and writes the
// response; Recall's callback is the first. [Lookup] finds the grant's record in a
// [Cache] and decides whether its token may be served. [Handler] routes requests to
// protocols, contains their panics and measures them. [Refresher] starts the renewals.
package tokenserver

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Protocol is one kind of request to the token server: a URL path, the
// proof that a request must carry, and the form of the response. To add one,
// implement it in a file of its own and pass it to [Handler.Mount].
//
// Implementations must be safe for concurrent use. They may panic: [Handler]
// logs the panic without its text, responds 500 and counts it. A URL that proves
// nothing must get [WriteNotFound] after one [Lookup.Find], as Recall's callback
// does, so that neither bytes nor timing reveal which URLs exist.
type Protocol interface {
	// Name returns the value of the metrics' protocol label. It is a constant.
	Name() string
	// Pattern returns the path that the protocol serves. As in [http.ServeMux], a
	// pattern that ends in a slash matches all paths below it; any other matches
	// one path.
	Pattern() string
	// Serve writes the response and returns its outcome. It may read the body.
	// Now is the time at which the request arrived, by the local clock.
	Serve(w http.ResponseWriter, r *http.Request, now time.Time) Outcome
}

// Outcome is the result of a request, as the metrics' outcome label.
type Outcome string

// The outcomes that protocols share. A protocol may return others, from a small
// constant set.
const (
	OutcomeServed      Outcome = "served"      // 2xx: the response has a token
	OutcomeUnknown     Outcome = "unknown"     // the URL proves nothing
	OutcomeSignature   Outcome = "signature"   // signature missing, wrong or too old
	OutcomeReauthorize Outcome = "reauthorize" // the user must authorize again
	OutcomeUnavailable Outcome = "unavailable" // no token is available now
	OutcomeOverloaded  Outcome = "overloaded"  // too many requests wait for a renewal
	OutcomeAbandoned   Outcome = "abandoned"   // the caller closed the connection
	OutcomeMethod      Outcome = "method"      // method not allowed
	OutcomePanic       Outcome = "panic"       // returned by no protocol: [Handler] counts it
	OutcomeUncounted   Outcome = ""            // the protocol has metrics of its own
)

// Config holds what the handler needs. Every field without a default is required.
type Config struct {
	Cache   *Cache
	Tokens  TokenSource
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: no metrics

	// Verifier checks that a callback was signed by Recall. Nil: the secret in
	// the URL is the only proof.
	Verifier *Verifier
	// Events handles POST /zoom/events. Nil: the path returns 404.
	Events http.Handler
	// Timeout limits the time that a request takes, renewal included. It must be
	// less than Recall waits. 0: 4.5 s.
	Timeout time.Duration
	// MaxWaiting limits the requests that wait for a renewal at once. 0: 1000.
	MaxWaiting int
}

// Handler routes requests to protocols. It is safe for concurrent use.
type Handler struct {
	// Lookup is shared by all protocols, and with it the limit on waiting requests.
	Lookup *Lookup

	log     *zap.Logger
	metrics *metrics
	routes  []route // the first serves every path that no other matches
}

// route is a protocol where it is mounted.
type route struct {
	Protocol
	pattern string
	metrics *protocolMetrics
}

// New returns the handler of the public endpoint, with Recall's callback and, if
// configured, Zoom's events. It does no I/O.
func New(c Config) *Handler {
	lookup := newLookup(c)
	h := &Handler{Lookup: lookup, log: c.Log, metrics: newMetrics(c.Metrics, lookup)}
	h.Mount(newRecallCallback(lookup, c.Verifier, c.Log, h.metrics))
	if c.Events != nil {
		h.Mount(zoomEvents{c.Events})
	}
	return h
}

// Mount adds a protocol. It must be called before the first request. The patterns
// of protocols must not overlap.
func (h *Handler) Mount(p Protocol) {
	h.routes = append(h.routes, route{p, p.Pattern(), h.metrics.of(p.Name())})
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	protocol := h.match(r.URL.Path)
	defer h.contain(w, protocol, began)
	outcome := protocol.Serve(w, r, began)
	protocol.metrics.observe(outcome, began)
}

// match returns the route of a path.
func (h *Handler) match(path string) *route {
	for i := range h.routes {
		pattern := h.routes[i].pattern
		if path == pattern || strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern) {
			return &h.routes[i]
		}
	}
	return &h.routes[0]
}

// contain limits the effect of a panic to its request. The text of a panic may
// quote the request, so it is not logged.
func (h *Handler) contain(w http.ResponseWriter, protocol *route, began time.Time) {
	fault := recover()
	if fault == nil {
		return
	}
	if fault == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as net/http does
		panic(fault)
	}
	h.log.Error("request panicked; responded 500", zap.String("protocol", protocol.Name()),
		zap.String("type", fmt.Sprintf("%T", fault)), zap.Stack("stack"))
	writeError(w, http.StatusInternalServerError, "internal error")
	protocol.metrics.observe(OutcomePanic, began)
}
