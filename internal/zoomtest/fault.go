package zoomtest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// Fault is how a request goes wrong. Without any field but Delay, Omit and
// Replace, the work is done and answered.
type Fault struct {
	Delay      time.Duration  // before the work, on top of Options.Latency
	Status     int            // answer this instead of doing the work
	Header     http.Header    // set in the answer
	Body       string         // with Status; "": what Zoom answers with such a status
	DropBefore bool           // close the connection, nothing done
	DropAfter  bool           // do the work and lose the answer
	Omit       []string       // leave these fields out of a token answer
	Replace    map[string]any // replace these fields of a token answer
}

type queued struct {
	fault Fault
	left  int // requests; negative: until healed
}

// Fail gives the next n requests to a path, such as "/oauth/token", a fault; n
// < 0: all until [Zoom.Heal]. Faults of a path are used up in order.
func (z *Zoom) Fail(path string, n int, f Fault) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.faults[path] = append(z.faults[path], &queued{f, n})
}

// Heal ends all faults.
func (z *Zoom) Heal() {
	z.mu.Lock()
	defer z.mu.Unlock()
	clear(z.faults)
}

func (z *Zoom) nextFault(path string) Fault {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.counts.Requests++
	for len(z.faults[path]) > 0 {
		next := z.faults[path][0]
		if next.left == 0 {
			z.faults[path] = z.faults[path][1:]
			continue
		}
		if next.left > 0 {
			next.left--
		}
		return next.fault
	}
	return Fault{}
}

// ServeHTTP implements [http.Handler]. It waits first (Latency and Delay), then
// works. A client that leaves during the wait ends the wait, but does not keep
// the work from being done: as with a real server, a token may be spent for an
// answer that nobody read.
func (z *Zoom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := z.nextFault(r.URL.Path)
	// All of the body first: net/http notices that a client has left only once
	// its request has been read to the end.
	var body []byte
	var err error
	if r.Body != nil {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	}
	r = r.WithContext(r.Context()) // a copy: the caller's stays as it is
	r.Body = io.NopCloser(bytes.NewReader(body))
	wait(r.Context(), z.options.Latency+fault.Delay)
	if fault.DropBefore {
		panic(http.ErrAbortHandler)
	}
	answer := httptest.NewRecorder()
	switch {
	case err != nil:
		refuse(answer, http.StatusBadRequest, "invalid_request", "the body is cut short or too long")
	case fault.Status == 0:
		z.route(answer, r, fault)
	case fault.Body == "":
		plausible(answer, r.URL.Path, fault.Status)
	default:
		answer.Header().Set("Content-Type", "application/json;charset=UTF-8")
		answer.WriteHeader(fault.Status)
		_, _ = answer.WriteString(fault.Body)
	}
	if fault.DropAfter {
		panic(http.ErrAbortHandler)
	}
	z.mu.Lock()
	z.counts.ByStatus[answer.Code]++
	z.mu.Unlock()
	header := w.Header()
	for _, from := range []http.Header{answer.Header(), fault.Header} {
		for name, values := range from {
			header[http.CanonicalHeaderKey(name)] = values
		}
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// plausible answers a status with the body that Zoom has for it.
func plausible(w http.ResponseWriter, path string, status int) {
	oauth := strings.HasPrefix(path, "/oauth/")
	switch {
	case oauth && status == http.StatusBadRequest:
		refuse(w, status, "invalid_grant", invalidToken)
	case oauth && status == http.StatusUnauthorized:
		refuse(w, status, "invalid_client", invalidClient)
	case status == http.StatusUnauthorized:
		reply(w, status, map[string]any{"code": 124, "message": invalidAccess})
	default:
		reply(w, status, map[string]any{"code": status, "message": http.StatusText(status)})
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
