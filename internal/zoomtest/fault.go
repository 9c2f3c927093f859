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

// Fault changes how a request is processed. Delay, Omit and Replace alone do not
// prevent the processing or the response.
type Fault struct {
	Delay      time.Duration  // before processing, on top of Options.Latency
	Status     int            // respond with this status, without processing; 0: process
	Header     http.Header    // set in the response
	Body       string         // with Status; "": the body that Zoom sends with this status
	DropBefore bool           // close the connection without processing
	DropAfter  bool           // process, then close the connection without a response
	Omit       []string       // fields to omit from a token response
	Replace    map[string]any // fields to replace in a token response
}

type queued struct {
	fault Fault
	left  int // requests; negative: until Heal
}

// Fail applies a fault to the next n requests to a path, such as "/oauth/token"; n < 0:
// to all until [Zoom.Heal]. The faults of a path apply one after another.
func (z *Zoom) Fail(path string, n int, f Fault) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.faults[path] = append(z.faults[path], &queued{f, n})
}

// Heal removes all faults.
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

// ServeHTTP implements [http.Handler]. It waits for Latency and Delay, then processes
// the request. A client that disconnects ends the wait, but the request is still
// processed: as with a real server, a token may be spent although its response is lost.
func (z *Zoom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := z.nextFault(r.URL.Path)
	// Read the whole body first: net/http detects a disconnected client only after that.
	var body []byte
	var err error
	if r.Body != nil {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	}
	r = r.WithContext(r.Context()) // a copy, so that the caller's request is unchanged
	r.Body = io.NopCloser(bytes.NewReader(body))
	wait(r.Context(), z.options.Latency+fault.Delay)
	if fault.DropBefore {
		panic(http.ErrAbortHandler)
	}
	response := httptest.NewRecorder()
	switch {
	case err != nil:
		refuse(response, http.StatusBadRequest, "invalid_request", "the body is incomplete or too long")
	case fault.Status == 0:
		z.route(response, r, fault)
	case fault.Body == "":
		respondDefault(response, r.URL.Path, fault.Status)
	default:
		response.Header().Set("Content-Type", "application/json;charset=UTF-8")
		response.WriteHeader(fault.Status)
		_, _ = response.WriteString(fault.Body)
	}
	if fault.DropAfter {
		panic(http.ErrAbortHandler)
	}
	z.mu.Lock()
	z.counts.ByStatus[response.Code]++
	z.mu.Unlock()
	header := w.Header()
	for _, from := range []http.Header{response.Header(), fault.Header} {
		for name, values := range from {
			header[http.CanonicalHeaderKey(name)] = values
		}
	}
	w.WriteHeader(response.Code)
	_, _ = w.Write(response.Body.Bytes())
}

// respondDefault responds with a status and the body that Zoom sends with it.
func respondDefault(w http.ResponseWriter, path string, status int) {
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
