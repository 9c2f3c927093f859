package zoom_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/secret"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
)

func TestCallsAreCounted(t *testing.T) {
	stand := zoomtest.New(zoomtest.Options{})
	server := httptest.NewServer(stand)
	t.Cleanup(server.Close)
	registry := prometheus.NewRegistry()
	metrics := zoom.NewMetrics(registry)
	with := func(base, password string) *zoom.Client {
		return zoom.New(zoom.Config{
			ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(password), OAuthURL: parse(t, base), APIURL: parse(t, base),
			HTTP: &http.Client{Transport: &http.Transport{}}, Metrics: metrics, App: "default",
		})
	}
	c := with(server.URL, zoomtest.DefaultClientSecret)
	value := func(series string) float64 {
		t.Helper()
		return testkit.MetricValue(t, registry, "tokenprovider_zoom_"+series)
	}
	if got := value(`calls_total{app="default",call="refresh",outcome="invalid_client"}`); got != 0 { // exported from the start, for increase()
		t.Errorf("%v refusals before the first call", got)
	}
	first, err := c.Exchange(t.Context(), code(stand, ""))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Me(t.Context(), first.Access)
	second, err := c.Refresh(t.Context(), first.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Me(t.Context(), first.Access)
	_, _ = c.Refresh(t.Context(), first.Refresh)
	_, _ = with(server.URL, "wrong").Refresh(t.Context(), second.Refresh)
	_, _ = with("http://127.0.0.1:1", "x").Refresh(t.Context(), second.Refresh)
	for _, fault := range []zoomtest.Fault{{Status: 503}, {Status: 429}, {Status: 404}, {DropBefore: true}} {
		stand.Fail("/oauth/token", 1, fault)
		_, _ = c.Refresh(t.Context(), second.Refresh)
	}
	_ = c.Revoke(t.Context(), second.Refresh)
	for series, want := range map[string]float64{
		`calls_total{app="default",call="exchange",outcome="ok"}`:            1,
		`calls_total{app="default",call="me",outcome="ok"}`:                  1,
		`calls_total{app="default",call="me",outcome="invalid_token"}`:       1,
		`calls_total{app="default",call="refresh",outcome="ok"}`:             1,
		`calls_total{app="default",call="refresh",outcome="invalid_grant"}`:  1,
		`calls_total{app="default",call="refresh",outcome="invalid_client"}`: 1,
		`calls_total{app="default",call="refresh",outcome="unsent"}`:         1,
		`calls_total{app="default",call="refresh",outcome="fault"}`:          1,
		`calls_total{app="default",call="refresh",outcome="limited"}`:        1,
		`calls_total{app="default",call="refresh",outcome="refused"}`:        1,
		`calls_total{app="default",call="refresh",outcome="uncertain"}`:      1,
		`calls_total{app="default",call="revoke",outcome="ok"}`:              1,
		`call_duration_seconds{call="refresh"}`:                              8,
	} {
		if got := value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

// TestClockOffset: the offset comes from the Date of the responses.
func TestClockOffset(t *testing.T) {
	date := time.Now().Add(-10 * time.Minute)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	registry := prometheus.NewRegistry()
	c := zoom.New(zoom.Config{
		ClientID: "x", OAuthURL: parse(t, server.URL), APIURL: parse(t, server.URL),
		HTTP: &http.Client{Transport: &http.Transport{}}, Metrics: zoom.NewMetrics(registry),
	})
	const series = "tokenprovider_zoom_clock_offset_seconds"
	if testkit.HasMetric(t, registry, series) {
		t.Error("an offset is exported before the first response")
	}
	_, _ = c.Refresh(t.Context(), secret.New("x"))
	if offset := testkit.MetricValue(t, registry, series); offset < -602 || offset > -598 {
		t.Errorf("the offset is %v s, want -600", offset)
	}
}
