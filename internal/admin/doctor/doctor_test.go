package doctor_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"tokenprovider/internal/admin/doctor"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
)

// planted lists secrets that no finding may contain.
var planted = []string{"planted-refresh", "planted-access", zoomtest.DefaultClientSecret, "recall-key", "hunter2"}

// world is a healthy deployment.
type world struct {
	doctor.Config
	t      *testing.T
	redis  *testkit.Redis
	zoom   *zoomtest.Zoom
	recall *recalltest.Recall
	grants *store.Store
	client *http.Client
}

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// tokenServer responds as a token server does to an unknown callback URL.
func tokenServer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "not found", http.StatusNotFound)
}

func start(t *testing.T, redisArgs ...string) *world {
	t.Helper()
	w := &world{
		t: t, redis: testkit.StartRedis(t, redisArgs...), zoom: zoomtest.New(zoomtest.Options{}), recall: recalltest.New(recalltest.Options{}),
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	serve := func(handler http.Handler) *url.URL {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		return parse(t, server.URL)
	}
	w.ZoomURL, w.RecallURL, w.Callback = serve(w.zoom), serve(w.recall), serve(http.HandlerFunc(tokenServer))
	w.Redis, w.Keyset, w.HTTP = w.redis.Client(), testkit.Keyset(t), w.client
	w.Recall = recall.New(recall.Config{APIURL: w.RecallURL, APIKey: secret.New("recall-key"), HTTP: w.client})
	w.Apps = []doctor.App{w.app("default", zoomtest.DefaultClientSecret)}
	w.JournalDir = t.TempDir()
	w.grants = store.New(w.Redis, w.Keyset)
	if err := w.grants.CheckKeyset(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		w.consent(fmt.Sprint("user-", i), time.Now().Add(time.Hour))
	}
	return w
}

func (w *world) app(name, clientSecret string) doctor.App {
	return doctor.App{
		Name: name, ClientID: zoomtest.DefaultClientID, OAuthApp: recalltest.DefaultOAuthApp,
		Zoom: zoom.New(zoom.Config{
			ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(clientSecret), OAuthURL: w.ZoomURL, APIURL: w.ZoomURL, HTTP: w.client,
		}),
	}
}

func tokens(name string) grant.Tokens {
	return grant.Tokens{
		Access: secret.New("planted-access " + name), Refresh: secret.New("planted-refresh " + name),
		Issued: time.Now(), Expires: time.Now().Add(time.Hour),
	}
}

// consent registers a user with a credential, whose token is due for renewal at due.
func (w *world) consent(user string, due time.Time) grant.ID {
	w.t.Helper()
	id := grant.NewID("default", user)
	_, err := w.grants.AcceptConsent(w.t.Context(), id, grant.Consent{
		App: "default", User: user, Fingerprint: "of " + user, Tokens: tokens(user), ZoomUser: "zoom-" + user, ZoomAccount: "a",
	}, due)
	if err != nil {
		w.t.Fatal(err)
	}
	g, err := w.grants.Get(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	credential := "credential-" + user
	if _, err := w.grants.Change(w.t.Context(), id, g.Version, store.Change{Credential: &credential}); err != nil {
		w.t.Fatal(err)
	}
	return id
}

// runAll runs all checks.
func (w *world) runAll() map[string]doctor.Finding {
	w.t.Helper()
	findings := map[string]doctor.Finding{}
	for _, f := range doctor.RunChecks(w.t.Context(), w.Checks(), 3*time.Second) {
		if _, twice := findings[f.Check]; twice {
			w.t.Errorf("two checks have the name %s", f.Check)
		}
		findings[f.Check] = f
		if (f.Verdict == doctor.Fault || f.Verdict == doctor.Warning) != (f.Fix != "") {
			w.t.Errorf("%s is %s, and its fix is %q", f.Check, f.Verdict, f.Fix)
		}
		for _, secret := range planted {
			if strings.Contains(f.Found+f.Fix, secret) {
				w.t.Errorf("%s shows a secret", f.Check)
			}
		}
	}
	return findings
}

// want compares the finding of one check.
func (w *world) want(check string, verdict doctor.Verdict, found string) {
	w.t.Helper()
	f, exists := w.runAll()[check]
	if !exists {
		w.t.Fatalf("there is no check %q", check)
	}
	if f.Verdict != verdict || !strings.Contains(f.Found, found) {
		w.t.Errorf("%s: %s, %q; want %s, %q", check, f.Verdict, f.Found, verdict, found)
	}
}

func TestHealthyDeployment(t *testing.T) {
	t.Parallel()
	w := start(t)
	for check, f := range w.runAll() {
		want := doctor.OK
		switch check {
		case "callback url": // no TLS, on loopback
			want = doctor.Warning
		case "registrar":
			want = doctor.NotChecked
		case "processes": // none runs
			want = doctor.Fault
		}
		if f.Verdict != want {
			t.Errorf("%s: %s, %q; want %s", check, f.Verdict, f.Found, want)
		}
	}
	if counts := w.zoom.Counts(); counts.SpentPresented+counts.Refreshes+counts.Exchanges != 0 || counts.UnknownPresented == 0 {
		t.Errorf("unexpected calls to Zoom: %+v", counts)
	}
	if counts := w.recall.Counts(); counts.CreateAttempts+counts.Deletes != 0 {
		t.Errorf("unexpected calls to Recall: %+v", counts)
	}
}

func TestNoSettings(t *testing.T) {
	t.Parallel()
	w := &world{t: t}
	w.HTTP = &http.Client{}
	for check, f := range w.runAll() {
		want := doctor.NotChecked
		switch check {
		case "settings":
			want = doctor.OK
		case "redis":
			want = doctor.Fault
		}
		if f.Verdict != want || f.Found == "" {
			t.Errorf("%s: %s, %q; want %s, with a cause", check, f.Verdict, f.Found, want)
		}
	}
}

func TestInvalidSettings(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.SettingProblems = []string{"REDIS_URL: is required", "KEYSET_FILE: the file cannot be read"}
	w.Keyset = nil
	w.want("setting REDIS_URL", doctor.Fault, "is required")
	w.want("setting KEYSET_FILE", doctor.Fault, "the file cannot be read")
	w.want("keyset", doctor.NotChecked, "KEYSET_FILE")
	w.want("journal", doctor.NotChecked, "KEYSET_FILE")
	w.want("grants", doctor.OK, "20 active") // no keyset needed
}

func TestRedisIsDown(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.redis.Freeze()
	w.want("redis", doctor.Fault, "")
	w.redis.Thaw()
	w.redis.Kill()
	findings := w.runAll()
	if f := findings["redis"]; f.Verdict != doctor.Fault || !strings.Contains(f.Found, "connection refused") {
		t.Errorf("redis: %s, %q", f.Verdict, f.Found)
	}
	for _, check := range []string{"redis persistence", "redis memory", "redis replication", "redis permissions", "clock of redis", "keyset", "processes", "grants", "renewals", "pauses"} {
		if f := findings[check]; f.Verdict != doctor.NotChecked || !strings.Contains(f.Found, "Redis does not respond") {
			t.Errorf("%s: %s, %q; want that Redis does not respond", check, f.Verdict, f.Found)
		}
	}
	if f := findings["zoom app default"]; f.Verdict != doctor.OK {
		t.Errorf("Zoom: %s", f.Found)
	}
}

// oldRedis returns the address of a proxy through which Redis reports version 6.
func oldRedis(t *testing.T, addr string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() {
				buffer := make([]byte, 1<<16)
				for {
					n, err := server.Read(buffer)
					if err != nil {
						_ = client.Close()
						return
					}
					text := bytes.Replace(buffer[:n], []byte("redis_version:7"), []byte("redis_version:6"), 1)
					_, _ = client.Write(text)
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func TestRedisIsMisconfigured(t *testing.T) {
	t.Parallel()
	w := start(t)
	set := func(setting, value string) {
		t.Helper()
		if err := w.Redis.ConfigSet(t.Context(), setting, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("appendonly", "no")
	w.want("redis persistence", doctor.Fault, "no append-only file")
	set("save", "60 1000")
	w.want("redis persistence", doctor.Warning, "only snapshots (save 60 1000)")
	set("appendonly", "yes")
	set("appendfsync", "no")
	w.want("redis persistence", doctor.Warning, "appendfsync is no")
	set("appendfsync", "everysec")
	w.want("redis persistence", doctor.OK, "everysec")

	set("maxmemory-policy", "allkeys-lru")
	w.want("redis memory", doctor.Warning, "allkeys-lru")
	set("maxmemory", "1gb")
	w.want("redis memory", doctor.Fault, "Redis evicts grants")
	set("maxmemory-policy", "noeviction")
	w.want("redis memory", doctor.OK, "of 1.0 GiB used")
	set("maxmemory", "1mb") // below its use
	w.want("redis memory", doctor.Fault, "noeviction")
	w.want("redis permissions", doctor.Fault, "Redis is full")
	set("maxmemory", "0")

	w.WaitReplicas = 1
	w.want("redis replication", doctor.Fault, "0 replicas in sync, and REDIS_WAIT_REPLICAS is 1")
	host, port, _ := strings.Cut(w.redis.Addr, ":")
	testkit.StartRedis(t, "--replicaof", host, port)
	for end := time.Now().Add(20 * time.Second); w.runAll()["redis replication"].Verdict != doctor.OK; {
		if time.Now().After(end) {
			t.Fatal("the replica is not reported")
		}
	}
	w.want("redis replication", doctor.OK, "1 replica in sync")

	w.Redis = testkit.RedisClient(t, "redis://"+oldRedis(t, w.redis.Addr))
	w.want("redis", doctor.Fault, "is too old")
}

func TestRedisUserLacksPermissions(t *testing.T) {
	t.Parallel()
	w := start(t)
	admin := w.Redis
	for name, c := range map[string]struct {
		rules   []any
		check   string
		verdict doctor.Verdict
		found   string
	}{
		"all":         {[]any{"~*", "&tp1:*", "+@all"}, "redis permissions", doctor.OK, ""},
		"no channels": {[]any{"~*", "resetchannels", "+@all"}, "redis permissions", doctor.Fault, "cannot be published"},
		"no writing":  {[]any{"~*", "&*", "+@all", "-@write"}, "redis permissions", doctor.Fault, "may not write"},
		"no scripts":  {[]any{"~*", "&*", "+@all", "-@scripting"}, "redis permissions", doctor.Fault, "may not write"},
		"other keys":  {[]any{"~other:*", "&*", "+@all"}, "redis permissions", doctor.Fault, "may not write"},
		"no state":    {[]any{"~*", "&*", "+@all", "-info"}, "redis", doctor.Warning, "INFO"},
		"no config":   {[]any{"~*", "&*", "+@all", "-config"}, "redis persistence", doctor.OK, "CONFIG is not allowed"},
	} {
		if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", "op", "reset", "on", ">hunter2"}, c.rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
		w.Redis = testkit.RedisClient(t, "redis://op:hunter2@"+w.redis.Addr)
		t.Log(name)
		w.want(c.check, c.verdict, c.found)
	}
	w.Redis = testkit.RedisClient(t, "redis://op:wrong@"+w.redis.Addr)
	w.want("redis", doctor.Fault, "WRONGPASS")
}

func TestClocks(t *testing.T) {
	t.Parallel()
	w := start(t)
	for skew, verdict := range map[time.Duration]doctor.Verdict{
		10 * time.Minute: doctor.Fault, -10 * time.Minute: doctor.Fault, 10 * time.Second: doctor.Warning, 0: doctor.OK,
	} {
		w.Now = func() time.Time { return time.Now().Add(skew) }
		for _, check := range []string{"clock of redis", "clock of zoom", "clock of recall"} {
			found := "clock is"
			if verdict == doctor.OK {
				found = "clock matches this machine's"
			}
			w.want(check, verdict, found)
		}
	}
	w.Now = func() time.Time { return time.Now().Add(10 * time.Minute) }
	w.want("clock of redis", doctor.Fault, "10m0s behind this machine's")
	w.ZoomURL = parse(t, "http://127.0.0.1:1")
	w.want("clock of zoom", doctor.NotChecked, "is unreachable")
}

func TestKeyset(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.want("keyset", doctor.OK, "1 key, 1 enabled; ")
	clear := seal.Wrapping{}
	json, err := clear.Generate()
	if err != nil {
		t.Fatal(err)
	}
	w.Keyset, err = clear.Parse(json)
	if err != nil {
		t.Fatal(err)
	}
	w.want("keyset", doctor.Fault, "encrypted with another keyset")

	// Some records are encrypted with another keyset.
	w = start(t)
	other := store.New(w.Redis, testkit.Keyset(t))
	if _, err := other.AcceptConsent(t.Context(), grant.NewID("default", "stranger"), grant.Consent{
		App: "default", User: "stranger", Fingerprint: "x", Tokens: tokens("stranger"),
	}, time.Now()); err != nil {
		t.Fatal(err)
	}
	w.want("keyset", doctor.Fault, "of 21 grants, 1 cannot be decrypted")
}

func TestZoomApp(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.Apps[0] = w.app("default", "wrong")
	w.want("zoom app default", doctor.Fault, "invalid_client")
	w.Apps[0] = w.app("default", zoomtest.DefaultClientSecret)
	for status, verdict := range map[int]doctor.Verdict{503: doctor.Warning, 429: doctor.Warning, 400: doctor.OK, 401: doctor.Fault} {
		w.zoom.Fail("/oauth/token", -1, zoomtest.Fault{Status: status})
		w.want("zoom app default", verdict, "")
		w.zoom.Heal()
	}
	w.zoom.Fail("/oauth/token", -1, zoomtest.Fault{DropBefore: true})
	w.want("zoom app default", doctor.Warning, "no usable response")
	w.zoom.Heal()
	w.ZoomURL = parse(t, "http://127.0.0.1:1")
	w.Apps[0] = w.app("default", zoomtest.DefaultClientSecret)
	w.want("zoom app default", doctor.Fault, "Zoom is unreachable")
}

func TestRecall(t *testing.T) {
	t.Parallel()
	w := start(t)
	right := w.Recall
	w.Recall = recall.New(recall.Config{APIURL: w.RecallURL, APIKey: secret.New("hunter2"), HTTP: w.client})
	w.want("recall key", doctor.Fault, "rejects the API key")
	w.Recall = recall.New(recall.Config{APIURL: parse(t, "http://127.0.0.1:1"), APIKey: secret.New("hunter2"), HTTP: w.client})
	w.want("recall key", doctor.Fault, "no response from Recall (connection refused)")
	w.Recall = right
	w.recall.Fail("", "", -1, recalltest.Fault{Status: 503})
	w.want("recall key", doctor.Warning, "503")
	w.want("recall app default", doctor.Warning, "503")
	w.recall.Heal()
	w.Apps[0].OAuthApp = "11111111-2222-3333-4444-555555555555"
	w.want("recall app default", doctor.Fault, "has no such app")
	w.Apps[0].OAuthApp, w.Apps[0].ClientID = recalltest.DefaultOAuthApp, "another"
	w.want("recall app default", doctor.Fault, "another client id")
	w.Apps[0].OAuthApp = ""
	w.want("recall app default", doctor.NotChecked, "uuid")
}

// certify creates a self-signed certificate, also in PEM.
func certify(t *testing.T, names []string, from, until time.Time) (tls.Certificate, *x509.Certificate, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, NotBefore: from, NotAfter: until,
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, parsed,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

const day = 24 * time.Hour

func TestCallback(t *testing.T) {
	t.Parallel()
	w := start(t)
	serve := func(c *tls.Certificate, handler http.HandlerFunc) string {
		server := httptest.NewUnstartedServer(handler)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		if c == nil {
			server.Start()
		} else {
			server.TLS = &tls.Config{Certificates: []tls.Certificate{*c}}
			server.StartTLS()
		}
		t.Cleanup(server.Close)
		return server.URL
	}
	now := time.Now()
	good, goodX, _, _ := certify(t, []string{"tokens.example"}, now.Add(-day), now.Add(90*day))
	ending, endingX, _, _ := certify(t, nil, now.Add(-day), now.Add(5*day))
	expired, expiredX, _, _ := certify(t, nil, now.Add(-2*day), now.Add(-day))
	unknown, _, _, _ := certify(t, nil, now.Add(-day), now.Add(day))
	roots := x509.NewCertPool()
	for _, one := range []*x509.Certificate{goodX, endingX, expiredX} {
		roots.AddCert(one)
	}
	w.HTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	respond := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	plain := serve(nil, tokenServer)
	for name, c := range map[string]struct {
		base    string
		verdict doctor.Verdict
		found   string
	}{
		"valid":                {serve(&good, tokenServer), doctor.OK, "the token server responds; its certificate expires in 89 days"},
		"expires soon":         {serve(&ending, tokenServer), doctor.Warning, "certificate expires in 4 days"},
		"expired":              {serve(&expired, tokenServer), doctor.Fault, "has expired"},
		"unknown authority":    {serve(&unknown, tokenServer), doctor.Fault, "signed by an unknown authority"},
		"another name":         {strings.Replace(serve(&good, tokenServer), "127.0.0.1", "localhost", 1), doctor.Fault, "for another name"},
		"plaintext here":       {plain, doctor.Warning, "without TLS"},
		"not TLS at all":       {strings.Replace(plain, "http:", "https:", 1), doctor.Fault, "does not speak TLS"},
		"another server's 404": {serve(&good, http.NotFound), doctor.Fault, "not the token server"},
		"a redirect":           {serve(&good, respond(301, "Location", "https://elsewhere.example")), doctor.Fault, "301, a redirect"},
		"no token server":      {serve(&good, respond(503)), doctor.Fault, "503"},
		"a login page":         {serve(&good, respond(200)), doctor.Fault, "200, not 404"},
		"refused":              {"https://127.0.0.1:1", doctor.Fault, "connection refused"},
		"Redis is down":        {serve(&good, respond(503, "Cache-Control", "no-store")), doctor.Fault, "returns 503"},
		"no such name":         {"https://tokens.invalid", doctor.Fault, "does not resolve"},
	} {
		t.Log(name)
		w.Callback = parse(t, c.base)
		w.want("callback url", c.verdict, c.found)
	}
	w.Callback = parse(t, serve(&good, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	findings := doctor.RunChecks(t.Context(), w.Checks(), 200*time.Millisecond)
	i := slices.IndexFunc(findings, func(f doctor.Finding) bool { return f.Check == "callback url" })
	if f := findings[i]; f.Verdict != doctor.Fault || f.Found != "unreachable: time-out" {
		t.Errorf("no response: %s, %q", f.Verdict, f.Found)
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	w := start(t)
	dir, now := t.TempDir(), time.Now()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, _, good, key := certify(t, nil, now.Add(-day), now.Add(90*day))
	_, _, ending, _ := certify(t, nil, now.Add(-day), now.Add(5*day))
	_, _, expired, _ := certify(t, nil, now.Add(-2*day), now.Add(-day))
	_, _, early, _ := certify(t, nil, now.Add(day), now.Add(90*day))
	for name, c := range map[string]struct {
		file    doctor.CertificateFile
		verdict doctor.Verdict
		found   string
	}{
		"good":            {doctor.CertificateFile{Path: file("good", good), KeyPath: file("key", key)}, doctor.OK, "89 days"},
		"expires soon":    {doctor.CertificateFile{Path: file("ending", ending)}, doctor.Warning, "4 days"},
		"one of several":  {doctor.CertificateFile{Path: file("several", append(bytes.Clone(good), expired...))}, doctor.Fault, "has expired"},
		"not yet":         {doctor.CertificateFile{Path: file("early", early)}, doctor.Fault, "not valid before"},
		"another key":     {doctor.CertificateFile{Path: file("ending2", ending), KeyPath: file("key2", key)}, doctor.Fault, "another certificate's"},
		"missing":         {doctor.CertificateFile{Path: dir + "/missing"}, doctor.Fault, "cannot be read"},
		"no certificate":  {doctor.CertificateFile{Path: file("none", []byte("hunter2"))}, doctor.Fault, "no certificate"},
		"bad certificate": {doctor.CertificateFile{Path: file("bad", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))}, doctor.Fault, "cannot be parsed"},
	} {
		t.Log(name)
		c.file.Setting = "GRPC_TLS_CERT_FILE"
		w.Certificates = []doctor.CertificateFile{c.file}
		w.want("certificate GRPC_TLS_CERT_FILE", c.verdict, c.found)
	}
}

func TestRegistrar(t *testing.T) {
	t.Parallel()
	w := start(t)
	serve := func(own *tls.Certificate) (*health.Server, string) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var options []grpc.ServerOption
		if own != nil {
			options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(own)))
		}
		server, state := grpc.NewServer(options...), health.NewServer()
		healthpb.RegisterHealthServer(server, state)
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		return state, listener.Addr().String()
	}
	connect := func(addr string, transport credentials.TransportCredentials) {
		connection, err := grpc.NewClient(addr, grpc.WithTransportCredentials(transport))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = connection.Close() })
		w.Registrar = connection
	}
	connect("127.0.0.1:1", insecure.NewCredentials())
	w.want("registrar", doctor.Fault, "connection refused")
	state, addr := serve(nil)
	connect(addr, insecure.NewCredentials())
	w.want("registrar", doctor.Warning, "plaintext")
	state.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	w.want("registrar", doctor.Fault, "not ready")

	now := time.Now()
	roots := x509.NewCertPool()
	trust := credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	for found, c := range map[string]struct {
		left    time.Duration
		verdict doctor.Verdict
	}{"89 days": {90 * day, doctor.OK}, "4 days": {5 * day, doctor.Warning}, "expired": {-time.Hour, doctor.Fault}} {
		own, parsed, _, _ := certify(t, nil, now.Add(-day), now.Add(c.left))
		roots.AddCert(parsed)
		_, addr := serve(&own)
		connect(addr, trust)
		w.want("registrar", c.verdict, found)
	}
}

// fail records a failed renewal of a grant.
func (w *world) fail(id grant.ID) {
	w.t.Helper()
	claim, err := w.grants.Claim(w.t.Context(), id, "test-"+string(id), grant.ClaimTerms{Lease: time.Minute})
	if err == nil {
		err = w.grants.Fail(w.t.Context(), claim, grant.OutcomeUnspent, time.Minute, "Zoom returned 503")
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestGrants(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.fail(w.consent("failing-1", time.Now().Add(-time.Second)))
	w.want("grants", doctor.Warning, "20 active, 1 degraded")
	for i := range 3 {
		w.fail(w.consent(fmt.Sprint("failing-", i+2), time.Now().Add(-time.Second)))
	}
	w.want("grants", doctor.Fault, "20 active, 4 degraded")
	w.Apps[0].Name = "another"
	w.want("grants", doctor.Fault, `24 of the Zoom app "default", which is not in the settings`)
}

func TestRenewalsAreOverdue(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.want("renewals", doctor.OK, "none is overdue")
	w.consent("late", time.Now().Add(-40*time.Second))
	w.want("renewals", doctor.Warning, "1 renewal overdue, the oldest for 40s")
	w.consent("later", time.Now().Add(-time.Hour))
	w.want("renewals", doctor.Fault, "2 renewals overdue, the oldest for 1h0m")
}

// TestProcesses: two running processes, an overdue heartbeat, and the entries that
// remain after a shutdown.
func TestProcesses(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.want("processes", doctor.Fault, "no token server runs: no token is served or renewed; no registrar runs")
	var running sync.WaitGroup
	run := func(program, version string) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		running.Go(func() { w.grants.RunHeartbeat(ctx, program, version) })
		for !slices.ContainsFunc(w.processes(), func(p store.Process) bool {
			return p.Program == program && strings.HasSuffix(p.Name, fmt.Sprint("/", os.Getpid()))
		}) {
			time.Sleep(10 * time.Millisecond)
		}
		return cancel
	}
	endServer := run("tokenserver", "v1")
	w.want("processes", doctor.Fault, "no registrar runs: no user can be registered; 1 token server")
	endRegistrar := run("registrar", "v1")
	w.want("processes", doctor.OK, "1 token server, 1 registrar, of one version")

	long := time.Now().Add(-time.Minute).UnixMilli()
	if err := w.Redis.HSet(t.Context(), "tp1:processes", "tokenserver stuck-pod/1", fmt.Sprint(long, " v1")).Err(); err != nil {
		t.Fatal(err)
	}
	w.want("processes", doctor.Warning, "no heartbeat from tokenserver stuck-pod/1 for 1m")
	now := time.Now().UnixMilli()
	if err := w.Redis.HSet(t.Context(), "tp1:processes", "tokenserver young-pod/1", fmt.Sprint(now, " v2")).Err(); err != nil {
		t.Fatal(err)
	}
	w.want("processes", doctor.Warning, "2 token servers, 1 registrar, of versions v1 and v2")

	expired := time.Now().Add(-2 * time.Hour).UnixMilli()
	if err := w.Redis.HSet(t.Context(), "tp1:processes", "tokenserver old-pod/1", fmt.Sprint(expired, " v1"), "registrar 7", "nonsense").Err(); err != nil {
		t.Fatal(err)
	}
	endServer()
	endRegistrar()
	running.Wait()
	if left := w.processes(); len(left) != 3 {
		t.Errorf("entries after the shutdown: %v", left)
	}
	endServer = run("tokenserver", "v2")
	if left := w.processes(); len(left) != 3 || slices.ContainsFunc(left, func(p store.Process) bool { return p.Name == "old-pod/1" }) {
		t.Errorf("the entry of a process without a heartbeat for two hours remains: %v", left)
	}
	endServer()
	running.Wait()

	if err := w.Redis.HDel(t.Context(), "tp1:processes", "tokenserver young-pod/1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.Redis.ConfigSet(t.Context(), "maxmemory", "1mb").Err(); err != nil { // below its use
		t.Fatal(err)
	}
	w.want("processes", doctor.NotChecked, "Redis rejects writes")
}

func (w *world) processes() []store.Process {
	w.t.Helper()
	all, err := w.grants.Processes(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestPauses(t *testing.T) {
	t.Parallel()
	w := start(t)
	err := errors.Join(
		w.grants.Pause(t.Context(), "default", time.Minute, "Zoom returned 503"),
		w.grants.Pause(t.Context(), "recall:other", time.Minute, ""),
	)
	if err != nil {
		t.Fatal(err)
	}
	w.want("pauses", doctor.Warning, "Recall (other) is paused for 1m0s; Zoom app default is paused for 1m0s: Zoom returned 503")
}

func TestJournal(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.want("journal", doctor.OK, "empty")
	id := grant.NewID("default", "user-0")
	spent := store.RefreshFingerprint(tokens("user-0").Refresh)
	response := tokens("successor")
	response.Issued = time.Now().Add(-2 * time.Minute)
	kept, err := journal.Open(w.JournalDir, w.Keyset, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.Add(t.Context(), journal.Entry{ID: id, Spent: spent, Tokens: response}); err != nil {
		t.Fatal(err)
	}
	w.want("journal", doctor.Fault, "1 response, of which Redis is missing 1")
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	w.want("journal", doctor.Fault, "no process uses this journal")
	if _, err := w.grants.Commit(t.Context(), id, spent, response, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.want("journal", doctor.OK, "1 response, all in Redis")
	w.Keyset = testkit.Keyset(t)
	w.want("journal", doctor.Fault, "decrypting entry")
	w.JournalDir = filepath.Join(w.JournalDir, "missing")
	w.want("journal", doctor.NotChecked, "no directory missing here")
}

func TestCheckExceedsItsTimeout(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var ended sync.WaitGroup
	ended.Add(1)
	checks := []doctor.Check{
		{Name: "stuck", Run: func(context.Context) doctor.Finding {
			defer ended.Done()
			<-release
			return doctor.Finding{Verdict: doctor.OK}
		}},
		{Name: "quick", Run: func(context.Context) doctor.Finding { return doctor.Finding{Verdict: doctor.OK} }},
	}
	findings := doctor.RunChecks(t.Context(), checks, 10*time.Millisecond)
	close(release)
	ended.Wait()
	if findings[0].Check != "stuck" || findings[0].Verdict != doctor.NotChecked || findings[1].Verdict != doctor.OK {
		t.Errorf("%+v", findings)
	}
}
