package app_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/app"
)

// run runs parts until stop is called, which returns what Run returned.
func run(t *testing.T, parts ...app.Part) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx, zap.NewNop(), 10*time.Second, parts...) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := app.Listen(t.Context(), "ADDR", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })

func TestHTTPSpeaksBothVersions(t *testing.T) {
	listener := listen(t)
	run(t, app.HTTP("http", zap.NewNop(), listener, hello))
	for _, want := range []string{"HTTP/1.1", "HTTP/2.0"} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(want == "HTTP/1.1")
		protocols.SetUnencryptedHTTP2(want == "HTTP/2.0")
		transport := &http.Transport{Protocols: protocols}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if string(body) != want {
			t.Errorf("spoke %s, want %s", body, want)
		}
	}
}

// raw sends text and returns what comes back until the connection ends.
func raw(t *testing.T, address, text string) string {
	t.Helper()
	connection, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	_ = connection.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(connection, text) // the server may have had enough
	response, err := io.ReadAll(connection)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the server keeps a connection without a request")
	}
	return string(response)
}

func TestHTTPBoundsItsClients(t *testing.T) {
	listener := listen(t)
	run(t, app.HTTP("http", zap.NewNop(), listener, hello))
	for name, c := range map[string]struct{ send, want string }{
		"a large header":    {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"a slow header":     {"GET / HTTP/1.1\r\nHost: x\r\n", ""},
		"nothing at all":    {"", ""},
		"not HTTP":          {"hello\r\n\r\n", "HTTP/1.1 400 "},
		"a long first line": {"GET /" + strings.Repeat("x", 64<<10), "HTTP/1.1 431 "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := raw(t, listener.Addr().String(), c.send); !strings.HasPrefix(got, c.want) {
				t.Errorf("returned %.40q, want %q", got, c.want)
			}
		})
	}
}

func TestReadinessEndsBeforeTheRest(t *testing.T) {
	listener := listen(t)
	missing := errors.New("Redis is missing")
	var check error
	ready := &app.Readiness{Drain: 300 * time.Millisecond, Check: func(context.Context) error { return check }}
	stop := run(t,
		app.HTTP("http", zap.NewNop(), listener, ready.Draining(app.Ops(ready, prometheus.NewRegistry()))),
		ready.Part())
	get := func(path string) (int, string, bool) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			return 0, "", false
		}
		defer func() { _ = response.Body.Close() }()
		text, _ := bufio.NewReader(response.Body).ReadString('\n')
		return response.StatusCode, text, response.Close
	}
	if status, _, closing := get("/readyz"); status != 200 || closing {
		t.Errorf("/readyz returns %d, closing %v", status, closing)
	}
	check = missing
	if status, text, _ := get("/readyz"); status != 503 || !strings.Contains(text, missing.Error()) {
		t.Errorf("/readyz returns %d %q", status, text)
	}
	if status, _, _ := get("/healthz"); status != 200 {
		t.Errorf("/healthz returns %d: the process lives", status)
	}
	check = nil
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	drained := false
	for {
		status, text, closing := get("/readyz")
		if status == 0 {
			break // the server is closed
		}
		if status == 503 {
			if drained = true; !closing || !strings.Contains(text, "stopping") {
				t.Errorf("while it drains: %q, closing %v", text, closing)
			}
		}
	}
	if !drained {
		t.Error("it was gone before it said that it was not ready")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestPartThatFailsEndsTheProgram(t *testing.T) {
	stopped := false
	err := app.Run(t.Context(), zap.NewNop(), time.Second,
		app.Part{Name: "first", Stop: func(context.Context) error { stopped = true; return nil }},
		app.Loop("loop", func(ctx context.Context) { <-ctx.Done() }),
		app.Part{Name: "broken", Run: func() error { return errors.New("oops") }},
	)
	if err == nil || err.Error() != "broken: oops" || !stopped {
		t.Errorf("ended with %v, the others stopped: %v", err, stopped)
	}
}
