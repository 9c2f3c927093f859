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
	prometheusProgram = flag.String("prometheus", "", "path of the prometheus program")
	healthyFor        = flag.Duration("healthy", 3*time.Minute, "time without a fault at the start")
	brokenFor         = flag.Duration("broken", 6*time.Minute, "time from a fault to its fix")
)

const (
	chartDir      = "../../charts/token-provider"
	nameWithin    = time.Minute     // limit for the dashboard and tokenctl doctor to name a fault
	recoverWithin = 8 * time.Minute // limit for the recovery after a fix
)

// scene is a fault, with the symptoms and the fix that are expected.
type scene struct {
	name  string
	cause func(*drill)
	fix   func(*drill) // the fix in docs/runbooks.md
	how   string       // the fix, for the table
	panel string       // the only panel of the dashboard that is red
	check string       // the check of tokenctl doctor that names the fault
	// alerts must fire. follows may fire as consequences. Alerts on objectives may fire
	// too; those on callbacks only if callbacks failed.
	alerts, follows []string
}

var scenes = []scene{
	{
		name: "Zoom down", panel: "Zoom", check: "zoom app default", how: "wait",
		cause: func(d *drill) {
			for _, path := range []string{"/oauth/token", "/v2/users/me", "/oauth/revoke"} {
				d.zoom.Fail(path, -1, zoomtest.Fault{Status: http.StatusServiceUnavailable})
			}
		},
		fix:    func(d *drill) { d.zoom.Heal() },
		alerts: []string{"TokenProviderZoomFails"}, follows: []string{"TokenProviderRefreshesOverdue"},
	},
	{
		name: "Recall down", panel: "Recall", check: "recall key", how: "wait",
		cause:  func(d *drill) { d.recall.Fail("", "", -1, recalltest.Fault{Status: http.StatusServiceUnavailable}) },
		fix:    func(d *drill) { d.recall.Heal() },
		alerts: []string{"TokenProviderRecallFails"},
	},
	{
		name: "Redis down", panel: "Redis", check: "redis", how: "start it, with the files it had",
		cause:  func(d *drill) { d.redis.Kill() },
		fix:    func(d *drill) { d.redis.Run() },
		alerts: []string{"TokenProviderRedisUnreachable"}, follows: []string{"TokenProviderRedisRestarted"},
	},
	{
		name: "Redis full", panel: "Redis", check: "redis memory", how: "raise maxmemory",
		cause:  func(d *drill) { d.configureRedis("maxmemory", "1mb") },
		fix:    func(d *drill) { d.configureRedis("maxmemory", "1gb") },
		alerts: []string{"TokenProviderRedisFull"}, follows: []string{"TokenProviderRefreshesOverdue", "TokenProviderJournalGrows"},
	},
	{
		name: "wrong client secret", panel: "Us", check: "zoom app default", how: "put the right one into the Secret",
		cause:  func(d *drill) { d.files.write("zoom", "another-secret") },
		fix:    func(d *drill) { d.files.write("zoom", zoomtest.DefaultClientSecret) },
		alerts: []string{"TokenProviderZoomAppRefused"}, follows: []string{"TokenProviderRefreshesOverdue"},
	},
	{
		name: "expired certificate", panel: "Us", check: "certificate GRPC_TLS_CERT_FILE", how: "put new ones into the Secret",
		cause:  func(d *drill) { d.files.writeCertificates(time.Now().Add(10 * time.Second)) },
		fix:    func(d *drill) { d.files.writeCertificates(time.Now().AddDate(0, 1, 0)) },
		alerts: []string{"TokenProviderCertificateExpired"},
	},
	{
		name: "clock 10 minutes ahead", panel: "Us", check: "clock of redis", how: "fix the node's clock, or move the pod",
		cause:  func(d *drill) { d.restart(1, "ahead"); d.doctorDir = "ahead" },
		fix:    func(d *drill) { d.restart(1, ""); d.doctorDir = "" },
		alerts: []string{"TokenProviderClocksDiffer"}, follows: []string{"TokenProviderSignaturesRefused"},
	},
	{
		name: "one replica stuck", panel: "Us", check: "processes", how: "delete the pod",
		cause: func(d *drill) { d.signal(1, syscall.SIGSTOP) },
		fix: func(d *drill) {
			d.signal(1, syscall.SIGKILL)
			d.start(1, "")
		},
		alerts: []string{"TokenProviderReplicaStuck"},
	},
}

// objectives are the alerts on the service level objectives.
var objectives = []string{"TokenProviderCallbacksFail", "TokenProviderCallbackBudget", "TokenProviderRegistrationsSlow"}

// TestDrill causes each fault in a separate stack under constant load, while a real
// Prometheus evaluates the chart's rules and dashboard. Dashboard and tokenctl doctor must
// name the fault within a minute, the right alerts must fire, and no grant may be lost
// after the fix. It logs the table of docs/operations.md.
func TestDrill(t *testing.T) {
	if *prometheusProgram == "" {
		t.Fatal("-prometheus is not set: use make drill")
	}
	buildAhead(t)
	drills := make([]*drill, len(scenes))
	for i, s := range scenes {
		drills[i] = newDrill(t, s)
	}
	watching := startPrometheus(t, drills)
	panels := readPanels(t)
	var running sync.WaitGroup
	for _, d := range drills {
		running.Go(func() { d.play(watching, panels) })
	}
	running.Wait()
	rows := []string{
		"| fault | dashboard, after a minute | `tokenctl doctor`, after a minute | alerts, after | callbacks meanwhile | users registered meanwhile | fixed by | recovered after | grants lost |",
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
	}
	for _, d := range drills {
		rows = append(rows, d.row)
	}
	t.Logf("\n%s", strings.Join(rows, "\n"))
}

// drill is a stack for one scene.
type drill struct {
	*operator
	scene
	files     files
	proxy     *proxy
	servers   [2]*process
	drop      [2]func()
	ops       [3]string // of the token servers and of the registrar
	doctorDir string    // subdirectory of bin with the tokenctl to run; empty: bin
	users     registrarv1.RegistrarServiceClient
	row       string

	mu                 sync.Mutex
	calls, failedCalls int

	registrations, failedRegistrations int
}

func newDrill(t *testing.T, s scene) *drill {
	t.Helper()
	d := &drill{operator: &operator{stack: newStack(t, 8*time.Minute), t: t, dir: t.TempDir()}, scene: s}
	d.files = files{t, t.TempDir()}
	d.files.write("zoom", zoomtest.DefaultClientSecret)
	d.files.writeCertificates(time.Now().AddDate(0, 1, 0))
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
	waitUntil(t, "both token servers are ready", 30*time.Second, func() bool { return d.proxy.countReady() == 2 })
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

// clientTLS returns a configuration that reloads the certificates for each connection.
func (d *drill) clientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(d.files.read("client.crt"), d.files.read("client.key"))
			return &pair, err
		},
		InsecureSkipVerify: true, // VerifyConnection verifies the server by the current ca.crt
		VerifyConnection: func(state tls.ConnectionState) error {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(d.files.read("ca.crt"))
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}
}

// start runs a token server from a subdirectory of bin. It keeps its ops address.
func (d *drill) start(i int, dir string) {
	ops := d.ops[i]
	if ops == "" {
		ops = "127.0.0.1:0"
	}
	env := append(slices.Clone(d.stack.env), "HTTP_ADDR=127.0.0.1:0", "OPS_ADDR="+ops, "RECALL_VERIFICATION_SECRETS="+verification,
		"JOURNAL_DIR="+d.journal(i))
	d.servers[i] = launch(d.t, filepath.Join(dir, "tokenserver"), env)
	d.ops[i] = d.servers[i].await(`"ops":"([^"]+)"`)
	d.drop[i] = d.proxy.add("http://"+d.servers[i].await(`"http":"([^"]+)"`), "http://"+d.ops[i])
}

func (d *drill) journal(i int) string { return filepath.Join(d.dir, fmt.Sprint("journal-", i)) }

func (d *drill) restart(i int, dir string) {
	d.signal(i, syscall.SIGTERM)
	d.servers[i].wait()
	d.drop[i]()
	d.start(i, dir)
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

// runLoad registers users and requests the tokens of all of them, until ctx ends.
func (d *drill) runLoad(ctx context.Context) {
	var load sync.WaitGroup
	load.Go(func() {
		started := false
		for n := 0; ctx.Err() == nil; n++ {
			_, refresh := d.zoom.Grant(zoomtest.DefaultClientID, fmt.Sprint("zoom-", n))
			request, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := d.users.RegisterUser(request, &registrarv1.RegisterUserRequest{
				UserId: fmt.Sprint("user-", n), Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: refresh},
			})
			cancel()
			d.mu.Lock()
			started = started || err == nil // a registrar spends no grant in its first 15 s
			if started && ctx.Err() == nil {
				d.registrations++
				if err != nil {
					d.failedRegistrations++
				}
			}
			d.mu.Unlock()
			sleep(ctx, 3*time.Second)
		}
	})
	for caller := range 4 {
		load.Go(func() {
			for n := caller; ctx.Err() == nil; n++ {
				if all := d.recall.Credentials(); len(all) > 0 {
					d.callBackOnce(ctx, all[(4*n+caller)%len(all)].ID)
				}
				sleep(ctx, time.Second)
			}
		})
	}
	load.Wait()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// callBackOnce makes one callback and counts it. Without a token it has failed.
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

// takeCounts returns the counts since its last call, and resets them.
func (d *drill) takeCounts() (calls, failedCalls, registrations, failedRegistrations int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls, failedCalls, registrations, failedRegistrations = d.calls, d.failedCalls, d.registrations, d.failedRegistrations
	d.calls, d.failedCalls, d.registrations, d.failedRegistrations = 0, 0, 0, 0
	return calls, failedCalls, registrations, failedRegistrations
}

// runDoctor runs tokenctl doctor and returns its faults and warnings by check.
func (d *drill) runDoctor() map[string]string {
	command := exec.Command(filepath.Join(bin, d.doctorDir, "tokenctl"), "doctor", "-o", "json")
	command.Env, command.Dir = append([]string{"PATH=" + os.Getenv("PATH")}, d.env...), d.dir
	out, _ := command.Output() // the lines have all that the exit status has
	found := map[string]string{}
	for _, one := range objects(d.t, string(out)) {
		if verdict := one["verdict"]; verdict == "fault" || verdict == "warning" {
			found[one["check"].(string)] = fmt.Sprintf("%s: %s", verdict, one["found"])
		}
	}
	return found
}

// play causes the fault of the scene, checks the symptoms, applies the fix and waits for
// the recovery.
func (d *drill) play(p *prometheus, panels map[string]string) {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	var load sync.WaitGroup
	load.Go(func() { d.runLoad(ctx) })
	fail := func(text string, values ...any) { d.t.Errorf(d.name+": "+text, values...) }

	time.Sleep(*healthyFor)
	usual := d.runDoctor()
	for check, found := range usual {
		if check != "callback url" { // it has no TLS here
			fail("before the fault: tokenctl doctor reports %s: %s", check, found)
		}
	}
	if red := p.red(d.name, panels); len(red) > 0 {
		fail("before the fault: red panels %v", red)
	}
	if firing := p.firing(d.name); len(firing) > 0 {
		fail("before the fault: firing alerts %v", firing)
	}
	if calls, failedCalls, _, failedRegistrations := d.takeCounts(); calls < 100 || failedCalls+failedRegistrations > 0 {
		fail("before the fault: %d callbacks, %d failed; %d registrations failed", calls, failedCalls, failedRegistrations)
	}

	d.cause(d)
	began := time.Now()
	time.Sleep(nameWithin)
	red := p.red(d.name, panels)
	if !slices.Equal(red, []string{d.panel}) {
		fail("red panels %v, want %s", red, d.panel)
	}
	reported := d.runDoctor()
	if reported[d.check] == "" {
		fail("tokenctl doctor does not report %s: %v", d.check, reported)
	}
	fired := map[string]time.Duration{}
	for time.Since(began) < *brokenFor {
		for _, name := range p.firing(d.name) {
			if _, known := fired[name]; !known {
				fired[name] = time.Since(began)
			}
		}
		time.Sleep(5 * time.Second)
	}
	for _, name := range d.alerts {
		if _, ok := fired[name]; !ok {
			fail("alert %s does not fire; firing: %v", name, fired)
		}
	}
	calls, failedCalls, registrations, failedRegistrations := d.takeCounts()
	for name := range fired {
		if !slices.Contains(d.alerts, name) && !slices.Contains(d.follows, name) && !slices.Contains(objectives, name) {
			fail("unexpected alert %s", name)
		}
		if slices.Contains(objectives[:2], name) && failedCalls == 0 {
			fail("alert %s fires although no callback failed", name)
		}
	}

	d.fix(d)
	fixed := time.Now()
	last := ""
	var healthySince time.Time
	for ; ; time.Sleep(5 * time.Second) {
		last = fmt.Sprint(p.red(d.name, panels), d.newFindings(usual), d.firingAfterFix(p))
		calls, failed, _, _ := d.takeCounts()
		switch {
		case last != "[] [] []" || calls > 0 && failed > 0:
			healthySince = time.Time{}
		case healthySince.IsZero():
			healthySince = time.Now()
		}
		if !healthySince.IsZero() && time.Since(healthySince) > 15*time.Second {
			fixed = fixed.Add(time.Since(healthySince))
			break
		}
		if time.Since(fixed) > recoverWithin {
			fail("no recovery within %v after the fix: %s, %d of %d callbacks failed", recoverWithin, last, failed, calls)
			break
		}
	}
	took := time.Since(fixed)
	end()
	load.Wait()
	lost := d.countLost()
	if lost > 0 {
		fail("%d grants lost", lost)
	}
	var alerts, findings []string
	for name, after := range fired {
		alerts = append(alerts, fmt.Sprintf("%s %s", strings.TrimPrefix(name, "TokenProvider"), after.Round(time.Second)))
	}
	slices.Sort(alerts)
	for check, found := range reported {
		if usual[check] == "" {
			findings = append(findings, check+": "+found)
		}
	}
	slices.Sort(findings)
	d.row = fmt.Sprintf("| %s | %s | %s | %s | %d of %d failed | %d of %d refused | %s | %v | %d |", d.name,
		strings.Join(red, ", "), strings.Join(findings, "; "), strings.Join(alerts, ", "),
		failedCalls, calls, failedRegistrations, registrations, d.how, took.Round(time.Second), lost)
	d.t.Log(d.row)
}

// newFindings returns the findings of tokenctl doctor that are not usual. It ignores
// processes: a killed one is reported for an hour.
func (d *drill) newFindings(usual map[string]string) (all []string) {
	for check, found := range d.runDoctor() {
		if usual[check] == "" && check != "processes" {
			all = append(all, check+": "+found)
		}
	}
	slices.Sort(all)
	return all
}

// firingAfterFix returns the firing alerts, except those with a long evaluation window.
func (d *drill) firingAfterFix(p *prometheus) (all []string) {
	for _, name := range p.firing(d.name) {
		if !slices.Contains(objectives, name) && name != "TokenProviderRedisRestarted" {
			all = append(all, name)
		}
	}
	return all
}

// countLost counts the users who must consent again, or whose token is invalid at Zoom.
func (d *drill) countLost() (n int) {
	out := d.mustRun("users", "list", "-o", "json", "--state", "reauthorization_required")
	n = strings.Count(out, "\n")
	if all := strings.Count(d.mustRun("users", "list", "-o", "json"), "\n"); all < 50 {
		d.t.Errorf("%s: only %d users, want at least 50", d.name, all)
	}
	for _, c := range d.recall.Credentials() {
		if token, status, err := d.recall.Callback(context.Background(), c.ID); err != nil || !d.zoom.IsLive(token) {
			d.t.Errorf("%s: callback after the recovery: status %d, or an invalid token", d.name, status)
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
		t.Fatal("time.Now of this Go release has no runtimeNow call to patch")
	}
	dir := t.TempDir()
	ahead := filepath.Join(dir, "time.go")
	if err := os.WriteFile(ahead, []byte(strings.ReplaceAll(string(text), now, now+"\tsec += 600\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: ahead}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(bin, "ahead")+"/",
		"tokenprovider/cmd/tokenserver", "tokenprovider/cmd/tokenctl")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building programs whose clock is ahead: %v\n%s", err, output)
	}
}

// readPanels returns the expressions, by title, of the dashboard's panels that name the
// party at fault.
func readPanels(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(chartDir + "/dashboards/token-provider.json")
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
		t.Fatalf("the dashboard has %d of the 4 panels that name the party at fault", len(panels))
	}
	return panels
}

// prometheus is a Prometheus that scrapes all drills, each as a namespace.
type prometheus struct {
	t    *testing.T
	base string
}

// startPrometheus runs Prometheus with the chart's rules until the test ends.
func startPrometheus(t *testing.T, drills []*drill) *prometheus {
	t.Helper()
	rules, err := filepath.Abs(chartDir + "/rules")
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
	dir := t.TempDir()
	path := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(path, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	command := exec.Command(*prometheusProgram, "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=error")
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
	p := &prometheus{t, "http://" + address}
	waitUntil(t, "Prometheus is ready", 30*time.Second, func() bool {
		response, err := http.Get(p.base + "/-/ready")
		if err == nil {
			_ = response.Body.Close()
		}
		return err == nil && response.StatusCode == http.StatusOK
	})
	return p
}

// query calls Prometheus's HTTP API and decodes the response.
func (p *prometheus) query(path string, into any) {
	response, err := http.Get(p.base + path)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil || response.StatusCode != http.StatusOK {
		p.t.Errorf("Prometheus: status %d: %v", response.StatusCode, err)
	}
}

// firing returns the alerts that fire in a namespace, or without one.
func (p *prometheus) firing(namespace string) (names []string) {
	var response struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	p.query("/api/v1/alerts", &response)
	for _, alert := range response.Data.Alerts {
		of := alert.Labels["namespace"]
		if name := alert.Labels["alertname"]; alert.State == "firing" && (of == namespace || of == "") && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// red returns the titles of the panels whose value is at least 1.
func (p *prometheus) red(namespace string, panels map[string]string) (titles []string) {
	titles = []string{}
	for title, expr := range panels {
		expr = strings.NewReplacer("$namespace", namespace, "$__rate_interval", "1m", "$__interval", "5s", "$__range", "1h").Replace(expr)
		var response struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		p.query("/api/v1/query?query="+url.QueryEscape(expr), &response)
		if len(response.Data.Result) != 1 {
			p.t.Errorf("panel %s has %d values", title, len(response.Data.Result))
			continue
		}
		if value, err := strconv.ParseFloat(response.Data.Result[0].Value[1].(string), 64); err != nil || value >= 1 {
			titles = append(titles, title)
		}
	}
	slices.Sort(titles)
	return titles
}
