package neterr_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/neterr"
)

func TestWhy(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("hang") {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unused := "http://" + listener.Addr().String()
	_ = listener.Close()

	for want, url := range map[string]string{
		"connection refused":    unused,
		"connection closed":     plain.URL,
		"time-out":              plain.URL + "?hang",
		"it does not speak TLS": strings.Replace(plain.URL, "http", "https", 1),
		"its certificate is signed by an unknown authority": secure.URL,
	} {
		timeout := time.Minute
		if want == "time-out" {
			timeout = 100 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = response.Body.Close()
			t.Fatal("the request succeeded")
		}
		cancel()
		if got := neterr.Describe(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, err := range map[string]error{
		"its name does not resolve":                        &net.DNSError{Err: "no such host", Name: "secret.example", IsNotFound: true},
		"its certificate has expired, or is not valid yet": x509.CertificateInvalidError{Reason: x509.Expired},
		"its certificate is for another name":              x509.HostnameError{Certificate: &x509.Certificate{}, Host: "secret.example"},
		"cancelled":                                        context.Canceled,
		"no usable response":                               errors.New("secret"),
	} {
		if got := neterr.Describe(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := neterr.Describe(io.ErrUnexpectedEOF); got != "connection closed" {
		t.Errorf("truncated response: %q", got)
	}
}
