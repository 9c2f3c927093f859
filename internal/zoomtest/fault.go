package zoomtest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"time"
)

// Fault is how a request goes wrong. Without any field but Delay, Omit and
// Replace, the work is done and answered.
type Fault struct {
	Delay      time.Duration  // before the work
	Status     int            // answer this instead of doing the work
	Header     http.Header    // added to the answer
	Body       string         // with Status; "": an empty JSON object
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

type faultKey struct{}

// ServeHTTP implements [http.Handler]. A client that leaves while it waits does
// not keep the work from being done, as with a real server.
func (z *Zoom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := z.nextFault(r.URL.Path)
	wait(r.Context(), z.options.Latency+fault.Delay)
	if fault.DropBefore {
		panic(http.ErrAbortHandler)
	}
	answer := httptest.NewRecorder()
	if fault.Status != 0 {
		answer.Header().Set("Content-Type", "application/json")
		answer.WriteHeader(fault.Status)
		_, _ = answer.WriteString(fault.Body)
		if fault.Body == "" {
			_, _ = answer.WriteString("{}")
		}
	} else {
		z.mux.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), faultKey{}, fault)))
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
			header[name] = values
		}
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
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
