package recalltest

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// Fault is a fault of a request. With only a Delay the request is served as usual,
// later.
//
// Go's http.Transport repeats a dropped GET by itself if the connection had served an
// earlier request. Count on [Counts], or fail twice.
type Fault struct {
	// Delay is the time, on top of Options.Latency, after which the request is
	// served. The wait ends when the client leaves; the request is still served.
	Delay time.Duration

	// Status, if not 0, is returned, and the request is not carried out.
	Status int

	// Header and Body go with Status. The Content-Type is application/json
	// unless Header says otherwise.
	Header http.Header
	Body   string

	// DropBefore closes the connection, and the request is not carried out.
	DropBefore bool

	// DropAfter carries out the request and loses the response: the connection is
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

// scripted is a fault in the queue, for n more requests; n < 0: for all.
type scripted struct {
	method, pathPrefix string
	n                  int
	fault              Fault
}

// Fail makes the next n requests with this method and path prefix meet f; n < 0
// means all of them until [Recall.Heal]. An empty method or prefix matches any.
// Faults queue: a request meets the first that matches it, before its key and
// the rate limits are checked, and no other.
func (r *Recall) Fail(method, pathPrefix string, n int, f Fault) {
	f.Header = f.Header.Clone()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &scripted{method, pathPrefix, n, f})
}

// Heal removes all faults. Requests that already have one are not affected.
func (r *Recall) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// begin counts a request and takes the fault it is to meet, if any.
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
