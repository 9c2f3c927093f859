package recall_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/testkit"
)

func TestRequestsAreCounted(t *testing.T) {
	stand, _, callbackURL := start(t, recalltest.Options{})
	server := httptest.NewServer(stand)
	t.Cleanup(server.Close)
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	metrics := recall.NewMetrics(registry)
	with := func(apiKey string) *recall.Client {
		return recall.New(recall.Config{APIURL: base, APIKey: secret.New(apiKey), HTTP: &http.Client{Transport: &http.Transport{}}, Metrics: metrics})
	}
	c := with(key)
	create := func(user string) recall.Credential {
		made, _ := c.Create(t.Context(), recalltest.DefaultOAuthApp, callbackURL(user))
		return made
	}
	made := create("ann")
	create("ann")
	_, _ = c.Get(t.Context(), made.ID)
	_ = list(t, c, recall.Filter{})
	_, _ = c.ListLogs(t.Context(), made.ID, time.Now().Add(-time.Hour))
	_ = c.Delete(t.Context(), made.ID)
	_ = c.Delete(t.Context(), made.ID)
	_ = with("another").Delete(t.Context(), made.ID)
	for _, fault := range []recalltest.Fault{{Status: 503}, {Status: 429}, {Status: 422}, {DropBefore: true}} {
		stand.Fail(http.MethodPost, "", 1, fault)
		create("bob")
	}
	for series, want := range map[string]float64{
		`calls_total{call="create",outcome="ok"}`:           1,
		`calls_total{call="create",outcome="conflict"}`:     1,
		`calls_total{call="create",outcome="fault"}`:        1,
		`calls_total{call="create",outcome="limited"}`:      1,
		`calls_total{call="create",outcome="refused"}`:      1,
		`calls_total{call="create",outcome="uncertain"}`:    1,
		`calls_total{call="get",outcome="ok"}`:              1,
		`calls_total{call="list",outcome="ok"}`:             1,
		`calls_total{call="logs",outcome="ok"}`:             1,
		`calls_total{call="delete",outcome="ok"}`:           1,
		`calls_total{call="delete",outcome="not_found"}`:    1,
		`calls_total{call="delete",outcome="unauthorized"}`: 1,
		`call_duration_seconds{call="create"}`:              6,
	} {
		if got := testkit.MetricValue(t, registry, "tokenprovider_recall_"+series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}
