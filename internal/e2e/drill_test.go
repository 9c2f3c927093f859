//go:build drill

package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	prometheusProgram = flag.String("prometheus", "", "the program prometheus")
	healthyFor        = flag.Duration("healthy", 3*time.Minute, "how long all is well first")
	brokenFor         = flag.Duration("broken", 6*time.Minute, "how long a fault lasts")
)

const (
	chartFolder = "../../charts/token-provider"
	named       = time.Minute     // within which a fault has to have a name
	mended      = 8 * time.Minute // within which all has to be well again
)

// scene is a fault, and what people see of it.
type scene struct {
	name  string
	cause func(*drill)
	mend  func(*drill) // what docs/runbooks.md says
	how   string       // the same, for the table
	who   string       // the panel of the dashboard that goes red, and no other
	check string       // of tokenctl doctor, that names it
	// alerts have to fire. follows may: what comes of the fault. Besides, the
	// objectives' alerts may, if users were hurt.
	alerts, follows []string
}

var scenes = []scene{
	{
		name: "Zoom down", who: "Zoom", check: "zoom app default", how: "wait",
		cause: func(d *drill) {
			for _, path := range []string{"/oauth/token", "/v2/users/me", "/oauth/revoke"} {
				d.zoom.Fail(path, -1, zoomtest.Fault{Status: http.StatusServiceUnavailable})
			}
		},
		mend:   func(d *drill) { d.zoom.Heal() },
		alerts: []string{"TokenProviderZoomFails"}, follows: []string{"TokenProviderRefreshesOverdue"},
	},
	{
		name: "Recall down", who: "Recall", check: "recall key", how: "wait",
		cause:  func(d *drill) { d.recall.Fail("", "", -1, recalltest.Fault{Status: http.StatusServiceUnavailable}) },
		mend:   func(d *drill) { d.recall.Heal() },
		alerts: []string{"TokenProviderRecallFails"},
	},
	{
		name: "Redis down", who: "Redis", check: "redis", how: "start it, with the files it had",
		cause:  func(d *drill) { d.redis.Kill() },
		mend:   func(d *drill) { d.redis.Run() },
		alerts: []string{"TokenProviderRedisUnreachable"}, follows: []string{"TokenProviderRedisRestarted"},
	},
	{
		name: "Redis full", who: "Redis", check: "redis memory", how: "raise maxmemory",
		cause:  func(d *drill) { d.configureRedis("maxmemory", "1mb") },
		mend:   func(d *drill) { d.configureRedis("maxmemory", "1gb") },
		alerts: []string{"TokenProviderRedisFull"}, follows: []string{"TokenProviderRefreshesOverdue", "TokenProviderJournalGrows"},
	},
	{
		name: "wrong client secret", who: "Us", check: "zoom app default", how: "put the right one into the Secret",
		cause:  func(d *drill) { d.files.write("zoom", "another-secret") },
		mend:   func(d *drill) { d.files.write("zoom", zoomtest.DefaultClientSecret) },
		alerts: []string{"TokenProviderZoomAppRefused"}, follows: []string{"TokenProviderRefreshesOverdue"},
	},
	{
		name: "expired certificate", who: "Us", check: "certificate GRPC_TLS_CERT_FILE", how: "put new ones into the Secret",
		cause:  func(d *drill) { d.files.certificates(time.Now().Add(10 * time.Second)) },
		mend:   func(d *drill) { d.files.certificates(time.Now().AddDate(0, 1, 0)) },
		alerts: []string{"TokenProviderCertificateExpired"},
	},
	{
		name: "clock 10 minutes ahead", who: "Us", check: "clock of redis", how: "mend the node's clock, or move the pod",
		cause:  func(d *drill) { d.restart(1, "ahead"); d.examineBy = "ahead" },
		mend:   func(d *drill) { d.restart(1, ""); d.examineBy = "" },
		alerts: []string{"TokenProviderClocksDiffer"}, follows: []string{"TokenProviderSignaturesRefused"},
	},
	{
		name: "one replica stuck", who: "Us", check: "processes", how: "delete the pod",
		cause: func(d *drill) { d.signal(1, syscall.SIGSTOP) },
		mend: func(d *drill) {
			d.signal(1, syscall.SIGKILL)
			d.start(1, "")
		},
		alerts: []string{"TokenProviderReplicaStuck"},
	},
}

// objectives are the alerts on what users are promised.
var objectives = []string{"TokenProviderCallbacksFail", "TokenProviderCallbackBudget", "TokenProviderRegistrationsSlow"}

// TestDrill causes each fault in a running stack of its own, with users who come and
// callbacks all the time, under the chart's rules and dashboard in a real
// Prometheus. It judges who names the fault, within a minute, which alerts fire,
// and that nothing is lost when it is mended; and prints the table that is in
// docs/operations.md.
func TestDrill(t *testing.T) {
	if *prometheusProgram == "" {
		t.Fatal("-prometheus is not set: use make drill")
	}
	buildAhead(t)
	drills := make([]*drill, len(scenes))
	for i, s := range scenes {
		drills[i] = newDrill(t, s)
	}
	watched := watch(t, drills)
	panels := blame(t)
	var running sync.WaitGroup
	for _, d := range drills {
		running.Go(func() { d.play(watched, panels) })
	}
	running.Wait()
	rows := []string{
		"| fault | dashboard, after a minute | `tokenctl doctor`, after a minute | alerts, after | callbacks meanwhile | users registered meanwhile | mended by | well after | grants lost |",
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
	}
	for _, d := range drills {
		rows = append(rows, d.row)
	}
	t.Logf("\n%s", strings.Join(rows, "\n"))
}

// drill is a stack in which a scene is played.
type drill struct {
	*operator
	scene
	files     files
	proxy     *proxy
	servers   [2]*process
	drop      [2]func()
	ops       [3]string // of the token servers and of the registrar
	examineBy string    // folder of the tokenctl that looks
	users     registrarv1.RegistrarServiceClient
	row       string

	mu                 sync.Mutex
	calls, failedCalls int
	asked, unanswered  int
}

func newDrill(t *testing.T, s scene) *drill {
	t.Helper()
	d := &drill{operator: &operator{stack: newStack(t, 8*time.Minute), t: t, folder: t.TempDir()}, scene: s}
	d.files = files{t, t.TempDir()}
	d.files.write("zoom", zoomtest.DefaultClientSecret)
	d.files.certificates(time.Now().AddDate(0, 1, 0))
	for i, line := range d.stack.env {
		if strings.HasPrefix(line, "ZOOM_CLIENT_SECRET=") {
			d.stack.env[i] = "ZOOM_CLIENT_SECRET_FILE=" + d.files.path("zoom")
		}
	}
	d.stack.env = append(d.stack.env, "REFRESH_BEFORE=5m", "RELOAD_INTERVAL=1s")
	d.proxy = &proxy{t: t}
	server := httptest.NewServer(d.proxy)
	t.Cleanup(server.Close)
	for i := range d.servers {
		d.start(i, "")
	}
	until(t, "both token servers are ready", 30*time.Second, func() bool { return d.proxy.ready() == 2 })
	tlsFiles := []string{
		"GRPC_TLS_CERT_FILE=" + d.files.path("tls.crt"), "GRPC_TLS_KEY_FILE=" + d.files.path("tls.key"), "GRPC_CLIENT_CA_FILE=" + d.files.path("ca.crt"),
	}
	d.stack.env = append(d.stack.env, append(tlsFiles, "CALLBACK_BASE_URL="+server.URL)...)
	registrar := launch(t, "registrar", append(d.stack.env, "GRPC_ADDR=127.0.0.1:0"))
	address := registrar.await(`"grpc":"([^"]+)"`)
	d.ops[2] = registrar.await(`"ops":"([^"]+)"`)
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(d.clientTLS())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	d.users = registrarv1.NewRegistrarServiceClient(connection)
	d.env = append(slices.Clone(d.stack.env), "JOURNAL_DIR="+d.journal(0),
		"REGISTRAR_ADDR="+address, "REGISTRAR_CA_FILE="+d.files.path("ca.crt"),
		"REGISTRAR_CERT_FILE="+d.files.path("client.crt"), "REGISTRAR_KEY_FILE="+d.files.path("client.key"))
	return d
}

// clientTLS reads the client's certificate for each connection: it is replaced.
func (d *drill) clientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(d.files.read("client.crt"), d.files.read("client.key"))
			return &pair, err
		},
		InsecureSkipVerify: true, // VerifyConnection does it, by the authority of the moment
		VerifyConnection: func(state tls.ConnectionState) error {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(d.files.read("ca.crt"))
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}
}

// start runs a token server, from a folder of programs, at the ops address that it
// had.
func (d *drill) start(i int, folder string) {
	ops := d.ops[i]
	if ops == "" {
		ops = "127.0.0.1:0"
	}
	env := append(slices.Clone(d.stack.env), "HTTP_ADDR=127.0.0.1:0", "OPS_ADDR="+ops, "RECALL_VERIFICATION_SECRETS="+verification,
		"JOURNAL_DIR="+d.journal(i))
	d.servers[i] = launch(d.t, filepath.Join(folder, "tokenserver"), env)
	d.ops[i] = d.servers[i].await(`"ops":"([^"]+)"`)
	d.drop[i] = d.proxy.add("http://"+d.servers[i].await(`"http":"([^"]+)"`), "http://"+d.ops[i])
}

func (d *drill) journal(i int) string { return filepath.Join(d.folder, fmt.Sprint("journal-", i)) }

func (d *drill) restart(i int, folder string) {
	d.signal(i, syscall.SIGTERM)
	d.servers[i].wait()
	d.drop[i]()
	d.start(i, folder)
}

func (d *drill) signal(i int, signal syscall.Signal) {
	if err := d.servers[i].command.Process.Signal(signal); err != nil {
		d.t.Error(err)
	}
	if signal == syscall.SIGKILL {
		<-d.servers[i].ended
		d.drop[i]()
	}
}

func (d *drill) configureRedis(name, value string) {
	if err := d.redis.Client().ConfigSet(context.Background(), name, value).Err(); err != nil {
		d.t.Error(err)
	}
}

// live has users who come and callbacks for all of them, until ctx ends.
func (d *drill) live(ctx context.Context) {
	var living sync.WaitGroup
	living.Go(func() {
		begun := false
		for n := 0; ctx.Err() == nil; n++ {
			_, refresh := d.zoom.Grant(zoomtest.DefaultClientID, fmt.Sprint("zoom-", n))
			request, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := d.users.RegisterUser(request, &registrarv1.RegisterUserRequest{
				UserId: fmt.Sprint("user-", n), Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: refresh},
			})
			cancel()
			d.mu.Lock()
			begun = begun || err == nil // a registrar spends nothing in its first 15 s
			if begun && ctx.Err() == nil {
				d.asked++
				if err != nil {
					d.unanswered++
				}
			}
			d.mu.Unlock()
			sleep(ctx, 3*time.Second)
		}
	})
	for caller := range 4 {
		living.Go(func() {
			for n := caller; ctx.Err() == nil; n++ {
				if all := d.recall.Credentials(); len(all) > 0 {
					d.callBackOnce(ctx, all[(4*n+caller)%len(all)].ID)
				}
				sleep(ctx, time.Second)
			}
		})
	}
	living.Wait()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// callBackOnce is a callback of Recall's that must give a token that Zoom takes.
func (d *drill) callBackOnce(ctx context.Context, credential string) {
	token, _, err := d.recall.Callback(ctx, credential)
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() == nil {
		d.calls++
		if err != nil || token == "" {
			d.failedCalls++
		}
	}
}

// since returns what came of callbacks and registrations since the last time.
func (d *drill) since() (calls, failed, asked, unanswered int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls, failed, asked, unanswered = d.calls, d.failedCalls, d.asked, d.unanswered
	d.calls, d.failedCalls, d.asked, d.unanswered = 0, 0, 0, 0
	return calls, failed, asked, unanswered
}

// examine runs tokenctl doctor and returns what is not as it should be.
func (d *drill) examine() map[string]string {
	command := exec.Command(filepath.Join(bin, d.examineBy, "tokenctl"), "doctor", "-o", "json")
	command.Env, command.Dir = append([]string{"PATH=" + os.Getenv("PATH")}, d.env...), d.folder
	out, _ := command.Output() // its exit status says what its lines say
	found := map[string]string{}
	for _, one := range objects(d.t, string(out)) {
		if verdict := one["verdict"]; verdict == "fault" || verdict == "warning" {
			found[one["check"].(string)] = fmt.Sprintf("%s: %s", verdict, one["found"])
		}
	}
	return found
}

// play plays the scene.
func (d *drill) play(p *prometheus, panels map[string]string) {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	var living sync.WaitGroup
	living.Go(func() { d.live(ctx) })
	fail := func(text string, values ...any) { d.t.Errorf(d.name+": "+text, values...) }

	time.Sleep(*healthyFor)
	usual := d.examine()
	for check, found := range usual {
		if check != "callback url" { // it has no TLS here
			fail("all is well, and doctor says of %s: %s", check, found)
		}
	}
	if red := p.red(d.name, panels); len(red) > 0 {
		fail("all is well, and the dashboard blames %v", red)
	}
	if firing := p.firing(d.name); len(firing) > 0 {
		fail("all is well, and these fire: %v", firing)
	}
	if calls, failed, _, unanswered := d.since(); calls < 100 || failed+unanswered > 0 {
		fail("all is well, and of %d callbacks %d fail, and %d registrations", calls, failed, unanswered)
	}

	d.cause(d)
	began := time.Now()
	time.Sleep(named)
	red := p.red(d.name, panels)
	if !slices.Equal(red, []string{d.who}) {
		fail("the dashboard blames %v, want %s", red, d.who)
	}
	said := d.examine()
	if said[d.check] == "" {
		fail("doctor does not name it: %v", said)
	}
	fired := map[string]time.Duration{}
	for time.Since(began) < *brokenFor {
		for _, name := range p.firing(d.name) {
			if _, before := fired[name]; !before {
				fired[name] = time.Since(began)
			}
		}
		time.Sleep(5 * time.Second)
	}
	for _, name := range d.alerts {
		if _, ok := fired[name]; !ok {
			fail("%s does not fire, but %v", name, fired)
		}
	}
	calls, failed, asked, unanswered := d.since()
	for name := range fired {
		if !slices.Contains(d.alerts, name) && !slices.Contains(d.follows, name) && !slices.Contains(objectives, name) {
			fail("%s fires, which is wrong", name)
		}
		if slices.Contains(objectives[:2], name) && failed == 0 {
			fail("%s fires, though no callback failed", name)
		}
	}

	d.mend(d)
	again := time.Now()
	last := ""
	var wellSince time.Time
	for ; ; time.Sleep(5 * time.Second) {
		last = fmt.Sprint(p.red(d.name, panels), d.troubles(usual), d.still(p))
		calls, failed, _, _ := d.since()
		switch {
		case last != "[] [] []" || calls > 0 && failed > 0:
			wellSince = time.Time{}
		case wellSince.IsZero():
			wellSince = time.Now()
		}
		if !wellSince.IsZero() && time.Since(wellSince) > 15*time.Second {
			again = again.Add(time.Since(wellSince))
			break
		}
		if time.Since(again) > mended {
			fail("not well %v after it was mended: %s, %d of %d callbacks fail", mended, last, failed, calls)
			break
		}
	}
	took := time.Since(again)
	end()
	living.Wait()
	lost := d.lost()
	if lost > 0 {
		fail("%d grants are lost", lost)
	}
	var alerts, findings []string
	for name, after := range fired {
		alerts = append(alerts, fmt.Sprintf("%s %s", strings.TrimPrefix(name, "TokenProvider"), after.Round(time.Second)))
	}
	slices.Sort(alerts)
	for check, found := range said {
		if usual[check] == "" {
			findings = append(findings, check+": "+found)
		}
	}
	slices.Sort(findings)
	d.row = fmt.Sprintf("| %s | %s | %s | %s | %d of %d failed | %d of %d refused | %s | %v | %d |", d.name,
		strings.Join(red, ", "), strings.Join(findings, "; "), strings.Join(alerts, ", "),
		failed, calls, unanswered, asked, d.how, took.Round(time.Second), lost)
	d.t.Log(d.row)
}

// troubles is what doctor says that it did not say when all was well. A process that
// was killed is remembered for an hour.
func (d *drill) troubles(usual map[string]string) (all []string) {
	for check, found := range d.examine() {
		if usual[check] == "" && check != "processes" {
			all = append(all, check+": "+found)
		}
	}
	slices.Sort(all)
	return all
}

// still is which alerts fire yet, apart from those that remember for long.
func (d *drill) still(p *prometheus) (all []string) {
	for _, name := range p.firing(d.name) {
		if !slices.Contains(objectives, name) && name != "TokenProviderRedisRestarted" {
			all = append(all, name)
		}
	}
	return all
}

// lost counts the users who would have to consent again, or whose token Zoom does
// not take.
func (d *drill) lost() (n int) {
	out := d.ok("users", "list", "-o", "json", "--state", "reauthorization_required")
	n = strings.Count(out, "\n")
	if all := strings.Count(d.ok("users", "list", "-o", "json"), "\n"); all < 50 {
		d.t.Errorf("%s: there are %d users only", d.name, all)
	}
	for _, c := range d.recall.Credentials() {
		if token, status, err := d.recall.Callback(context.Background(), c.ID); err != nil || !d.zoom.IsLive(token) {
			d.t.Errorf("%s: a callback is answered %d after all", d.name, status)
			n++
		}
	}
	return n
}

// buildAhead builds programs whose clock is ten minutes ahead.
func buildAhead(t *testing.T) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const now = "sec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), now) == 0 {
		t.Fatal("this Go reads its clock in another way")
	}
	folder := t.TempDir()
	ahead := filepath.Join(folder, "time.go")
	if err := os.WriteFile(ahead, []byte(strings.ReplaceAll(string(text), now, now+"\tsec += 600\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: ahead}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay", filepath.Join(folder, "overlay.json"), "-o", filepath.Join(bin, "ahead")+"/",
		"tokenprovider/cmd/tokenserver", "tokenprovider/cmd/tokenctl")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building programs whose clock is ahead: %v\n%s", err, output)
	}
}

// blame reads the panels of the dashboard that say who is at fault.
func blame(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(chartFolder + "/dashboards/token-provider.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	panels := map[string]string{}
	for _, p := range board.Panels {
		if slices.Contains([]string{"Zoom", "Recall", "Redis", "Us"}, p.Title) && len(p.Targets) == 1 {
			panels[p.Title] = p.Targets[0].Expr
		}
	}
	if len(panels) != 4 {
		t.Fatalf("the dashboard has %d of 4 panels that say who it is", len(panels))
	}
	return panels
}

// prometheus is a Prometheus that watches all drills, each as a namespace.
type prometheus struct {
	t    *testing.T
	base string
}

func watch(t *testing.T, drills []*drill) *prometheus {
	t.Helper()
	rules, err := filepath.Abs(chartFolder + "/rules")
	if err != nil {
		t.Fatal(err)
	}
	var config strings.Builder
	fmt.Fprintf(&config, "global: {scrape_interval: 5s, scrape_timeout: 4s, evaluation_interval: 5s}\nrule_files: [%q]\nscrape_configs:\n- job_name: drill\n  static_configs:\n", rules+"/*.yaml")
	for _, d := range drills {
		for i, ops := range d.ops {
			fmt.Fprintf(&config, "  - {targets: [%q], labels: {namespace: %q, pod: %q}}\n", ops, d.name, []string{"token-server-0", "token-server-1", "registrar-0"}[i])
		}
	}
	folder := t.TempDir()
	path := filepath.Join(folder, "prometheus.yaml")
	if err := os.WriteFile(path, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	command := exec.Command(*prometheusProgram, "--config.file="+path, "--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+address, "--log.level=error")
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
	p := &prometheus{t, "http://" + address}
	until(t, "Prometheus is ready", 30*time.Second, func() bool {
		response, err := http.Get(p.base + "/-/ready")
		if err == nil {
			_ = response.Body.Close()
		}
		return err == nil && response.StatusCode == http.StatusOK
	})
	return p
}

func (p *prometheus) ask(path string, into any) {
	response, err := http.Get(p.base + path)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil || response.StatusCode != http.StatusOK {
		p.t.Errorf("Prometheus answers %d: %v", response.StatusCode, err)
	}
}

// firing returns the alerts that fire in a namespace, or everywhere.
func (p *prometheus) firing(namespace string) (names []string) {
	var answer struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	p.ask("/api/v1/alerts", &answer)
	for _, alert := range answer.Data.Alerts {
		of := alert.Labels["namespace"]
		if name := alert.Labels["alertname"]; alert.State == "firing" && (of == namespace || of == "") && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// red returns the panels that blame their party.
func (p *prometheus) red(namespace string, panels map[string]string) (titles []string) {
	titles = []string{}
	for title, expr := range panels {
		expr = strings.NewReplacer("$namespace", namespace, "$__rate_interval", "1m", "$__interval", "5s", "$__range", "1h").Replace(expr)
		var answer struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		p.ask("/api/v1/query?query="+url.QueryEscape(expr), &answer)
		if len(answer.Data.Result) != 1 {
			p.t.Errorf("panel %s has %d values", title, len(answer.Data.Result))
			continue
		}
		if value, err := strconv.ParseFloat(answer.Data.Result[0].Value[1].(string), 64); err != nil || value >= 1 {
			titles = append(titles, title)
		}
	}
	slices.Sort(titles)
	return titles
}
