package tokenserver

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
)

// recallCallback is Recall's callback (docs.recall.ai, customer-managed OAuth):
// GET of a URL with a secret, the token as plain text, valid for at least 120
// seconds. It also serves every path that no other protocol matches, so that an
// unknown path takes the time of an unknown credential.
type recallCallback struct {
	lookup   *Lookup
	verifier *Verifier // nil: requests need no signature
	log      *zap.Logger
	metrics  *metrics
	absent   callback.Address // of no grant: a user's id is never empty
}

func newRecallCallback(lookup *Lookup, verifier *Verifier, log *zap.Logger, metrics *metrics) *recallCallback {
	return &recallCallback{lookup, verifier, log, metrics, callback.NewAddress(grant.NewID("", ""))}
}

var (
	errSignature = errors.New("not signed by Recall")
	errMethod    = errors.New("method not allowed")
)

// Name implements [Protocol].
func (*recallCallback) Name() string { return "recall" }

// Pattern implements [Protocol].
func (*recallCallback) Pattern() string { return callback.Prefix }

// Serve implements [Protocol].
func (c *recallCallback) Serve(w http.ResponseWriter, r *http.Request, now time.Time) Outcome {
	record, err := c.find(r, now)
	if err != nil {
		return c.refuse(w, r, err)
	}
	WriteToken(w, record.Access.Reveal())
	c.metrics.observeTTL(record.Expires.Sub(now))
	return OutcomeServed
}

// find returns the record of a request that has proved its right to the token.
func (c *recallCallback) find(r *http.Request, now time.Time) (*grant.ServingRecord, error) {
	path := r.URL.Path
	if r.URL.RawPath != "" {
		path = "" // a callback's path has nothing to escape
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && strings.HasPrefix(path, callback.Prefix) {
		return nil, errMethod
	}
	address, ok := callback.ParsePath(path)
	if !ok {
		address = c.absent // looked up like any other, in the same time
	}
	record, err := c.lookup.Find(r.Context(), address.ID, func(serving *grant.ServingRecord) bool {
		return address.Matches(serving.Secrets, now)
	})
	if err != nil {
		return nil, err
	}
	if c.verifier != nil && !c.verifier.Verify(r.Header, now) {
		return nil, errSignature
	}
	return c.lookup.EnsureFresh(r.Context(), address.ID, record, now)
}

// refuse writes the response to a request that gets no token. It is the one
// place where this protocol maps errors to statuses.
func (c *recallCallback) refuse(w http.ResponseWriter, r *http.Request, err error) Outcome {
	wait := time.Second
	outcome := OutcomeUnavailable
	var backoff *grant.BackoffError
	switch {
	case errors.Is(err, errMethod):
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "use GET")
		return OutcomeMethod
	case errors.Is(err, ErrUnknown), errors.Is(err, grant.ErrDeleting), errors.Is(err, grant.ErrNotFound):
		WriteNotFound(w)
		return OutcomeUnknown
	case errors.Is(err, errSignature):
		writeError(w, http.StatusUnauthorized, "signature missing, wrong or too old")
		return OutcomeSignature
	case errors.Is(err, grant.ErrReauthorize):
		writeError(w, http.StatusGone, "the user must authorize again")
		return OutcomeReauthorize
	case errors.Is(err, ErrOverloaded):
		outcome = OutcomeOverloaded
	case errors.As(err, &backoff):
		wait = backoff.For
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		outcome = OutcomeAbandoned
	}
	if outcome == OutcomeUnavailable {
		c.log.Warn("no token available; responded 503", zap.Error(err))
	}
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second))))
	writeError(w, http.StatusServiceUnavailable, "no access token is available now")
	return outcome
}
