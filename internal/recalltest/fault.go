package recalltest

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// Fault is an injected fault. With only a Delay, the request is served normally after
// it.
//
// Go's http.Transport repeats a dropped GET if the connection had served an earlier
// request. Rely on [Counts], or fail twice.
type Fault struct {
	// Delay delays the request's execution, in addition to Options.Latency. The wait
	// ends when the client disconnects; the request is executed nonetheless.
	Delay time.Duration

	// Status, if not 0, is returned without executing the request.
	Status int

	// Header and Body belong to Status. The Content-Type is application/json
	// unless Header says otherwise.
	Header http.Header
	Body   string

	// DropBefore closes the connection without executing the request.
	DropBefore bool

	// DropAfter executes the request and loses the response: the connection is
	// closed or, with a Status, that is returned instead, as by a gateway.
	DropAfter bool
}

func (f Fault) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	for name, values := range f.Header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	w.WriteHeader(f.Status)
	_, _ = io.WriteString(w, f.Body)
}

// scripted is a queued fault for n more requests; n < 0: for all.
type scripted struct {
	method, pathPrefix string
	n                  int
	fault              Fault
}

// Fail applies f to the next n requests with this method and path prefix; n < 0 means
// all of them until [Recall.Heal]. An empty method or prefix matches any. Faults are
// queued: a request gets the first match only, before its key and the rate limits are
// checked.
func (r *Recall) Fail(method, pathPrefix string, n int, f Fault) {
	f.Header = f.Header.Clone()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &scripted{method, pathPrefix, n, f})
}

// Heal removes all faults. It does not affect requests that already got one.
func (r *Recall) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// begin counts a request and returns its fault, if any.
func (r *Recall) begin(req *http.Request) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Requests++
	for _, s := range r.faults {
		if s.n == 0 || s.method != "" && s.method != req.Method || !strings.HasPrefix(req.URL.Path, s.pathPrefix) {
			continue
		}
		if s.n > 0 {
			s.n--
		}
		return s.fault
	}
	return Fault{}
}
