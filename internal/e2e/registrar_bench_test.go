package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// BenchmarkRegistrations compares one registrar with a bare loop that makes the same three
// remote calls: exchange, users/me, create. Both have 64 callers, and Zoom and Recall with
// a latency of 50 ms. GetUser is called 200 times a second during the registrations.
func BenchmarkRegistrations(b *testing.B) {
	const users, callers, latency = 2000, 64, 50 * time.Millisecond
	zoom := zoomtest.New(zoomtest.Options{Latency: latency})
	zoomServer := httptest.NewServer(zoom)
	defer zoomServer.Close()
	// This Recall does not check the owner of a token, so one URL can serve all users.
	token := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte("token"))
	}))
	defer token.Close()
	recall := recalltest.New(recalltest.Options{Latency: latency, RateLimit: -1, ListRateLimit: -1})
	recallServer := httptest.NewServer(recall)
	defer recallServer.Close()
	redis := testkit.StartRedis(b, "--appendfsync", "everysec")
	keyset := b.TempDir() + "/keyset.json"
	launch(b, "tokenctl", nil, "keyset", "create", keyset).wait()
	p := launch(b, "registrar", []string{
		"REDIS_URL=" + redis.URL(), "KEYSET_FILE=" + keyset, "ZOOM_CLIENT_ID=" + zoomtest.DefaultClientID, "ZOOM_CLIENT_SECRET=" + zoomtest.DefaultClientSecret,
		"ZOOM_OAUTH_URL=" + zoomServer.URL, "ZOOM_API_URL=" + zoomServer.URL, "RECALL_API_URL=" + recallServer.URL, "RECALL_API_KEY=recall-key",
		"RECALL_OAUTH_APP_ID=" + recalltest.DefaultOAuthApp, "RECALL_RATE_LIMIT=10000000", "CALLBACK_BASE_URL=" + token.URL,
		"GRPC_ADDR=127.0.0.1:0", "GRPC_INSECURE=true", "OPS_ADDR=127.0.0.1:0",
	})
	connection, err := grpc.NewClient(p.await(`"grpc":"([^"]+)"`), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	client := registrarv1.NewRegistrarServiceClient(connection)
	const redirect = "https://app.example/oauth"
	register := func(user string) error {
		_, err := client.RegisterUser(context.Background(), &registrarv1.RegisterUserRequest{
			UserId: user, Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{AuthorizationCode: &registrarv1.AuthorizationCode{
				Code: zoom.Consent(zoomtest.DefaultClientID, "zoom-"+user, redirect, ""), RedirectUri: redirect,
			}},
		})
		return err
	}
	bare := func(user string) error {
		return bareRegistration(zoomServer.URL, recallServer.URL, token.URL, zoom.Consent(zoomtest.DefaultClientID, "zoom-"+user, redirect, ""), redirect)
	}
	perSecond := func(name string, one func(string) error) float64 {
		work := make(chan int)
		var wg sync.WaitGroup
		began := time.Now()
		for range callers {
			wg.Go(func() {
				for i := range work {
					if err := one(fmt.Sprint(name, "-", i)); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for i := range users {
			work <- i
		}
		close(work)
		wg.Wait()
		return users / time.Since(began).Seconds()
	}
	if err := register("ann"); err != nil { // also waits for the registrar's pause after Redis has started
		b.Fatal(err)
	}
	for b.Loop() {
		var reads []time.Duration
		var stop atomic.Bool
		var reader sync.WaitGroup
		reader.Go(func() {
			for tick := time.NewTicker(5 * time.Millisecond); !stop.Load(); <-tick.C {
				began := time.Now()
				if _, err := client.GetUser(context.Background(), &registrarv1.GetUserRequest{UserId: "ann"}); err != nil {
					b.Error(err)
				}
				reads = append(reads, time.Since(began))
			}
		})
		cpu := cpuTime(b, p.command.Process.Pid)
		registrar := perSecond("user", register)
		cpu = cpuTime(b, p.command.Process.Pid) - cpu
		stop.Store(true)
		reader.Wait()
		loop := perSecond("bare", bare)
		slices.Sort(reads)
		b.ReportMetric(registrar, "registrations/s")
		b.ReportMetric(loop, "bare-loops/s")
		b.ReportMetric(registrar/loop, "ratio")
		b.ReportMetric(float64(cpu.Microseconds())/users, "cpu-µs/registration")
		b.ReportMetric(float64(reads[len(reads)/2].Microseconds())/1000, "GetUser-p50-ms")
		b.ReportMetric(float64(reads[len(reads)*99/100].Microseconds())/1000, "GetUser-p99-ms")
	}
}

var bareClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// bareRegistration makes the three remote calls of a registration.
func bareRegistration(zoom, recall, callback, code, redirect string) error {
	do := func(method, target, contentType, authorization string, body []byte, into any) error {
		request, err := http.NewRequest(method, target, bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", contentType)
		request.Header.Set("Authorization", authorization)
		if authorization == "" {
			request.SetBasicAuth(zoomtest.DefaultClientID, zoomtest.DefaultClientSecret)
		}
		response, err := bareClient.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode/100 != 2 {
			return fmt.Errorf("%s: status %d", request.URL.Path, response.StatusCode)
		}
		return json.NewDecoder(response.Body).Decode(into)
	}
	var tokens struct {
		Access string `json:"access_token"`
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect}}
	if err := do(http.MethodPost, zoom+"/oauth/token", "application/x-www-form-urlencoded", "", []byte(form.Encode()), &tokens); err != nil {
		return err
	}
	var me, created map[string]any
	if err := do(http.MethodGet, zoom+"/v2/users/me", "", "Bearer "+tokens.Access, nil, &me); err != nil {
		return err
	}
	body := fmt.Sprintf(`{"oauth_app":%q,"access_token_callback_url":%q}`, recalltest.DefaultOAuthApp, callback+"/x")
	return do(http.MethodPost, recall+"/api/v2/zoom-oauth-credentials/", "application/json", "Token recall-key", []byte(body), &created)
}
