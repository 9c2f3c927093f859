//go:build chart

package charttest

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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
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
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

const verification = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// node stands in for a kubelet: it creates the volumes of a rendered pod on disk,
// and runs its container as a process with the rendered command, environment and
// files. Unlike in a pod, paths and ports are local, and nothing isolates the process.
type node struct {
	t          *testing.T
	objects    []object
	secrets    map[string]map[string]string // name -> key -> content
	configMaps map[string]string            // appended to a ConfigMap's files, by the suffix of its name
}

// pod has a pod's volumes, which persist across restarts of its container.
type pod struct {
	*node
	object   object
	mounts   [][2]string       // mount path, directory; longest path first
	settings map[string]string // the environment, with local paths
	dir      string            // working directory, which must stay empty

	mu     sync.Mutex
	output bytes.Buffer
	job    *exec.Cmd
	done   chan struct{}
}

func (n *node) pod(kind, component string) *pod {
	n.t.Helper()
	p := &pod{node: n, object: find(n.t, n.objects, kind, component), dir: n.t.TempDir(), settings: map[string]string{}}
	spec := p.object.pod()
	dirs := map[string]string{}
	for i, m := range spec.Containers[0].VolumeMounts {
		dir, ok := dirs[m.Name]
		if !ok {
			dir = filepath.Join(n.t.TempDir(), "volume"+strconv.Itoa(i))
			if err := os.Mkdir(dir, 0o700); err != nil {
				n.t.Fatal(err)
			}
			dirs[m.Name] = dir
		}
		p.mounts = append(p.mounts, [2]string{m.MountPath, dir})
	}
	slices.SortFunc(p.mounts, func(a, b [2]string) int { return len(b[0]) - len(a[0]) })
	for _, v := range spec.Volumes {
		if dirs[v.Name] == "" {
			n.t.Errorf("%v: volume %s is not mounted", p.object, v.Name)
			continue
		}
		switch {
		case v.Projected != nil:
			for _, source := range v.Projected.Sources {
				n.project(dirs[v.Name], source.Secret.Name, source.Secret)
			}
		case v.Secret != nil:
			n.project(dirs[v.Name], v.Secret.SecretName, v.Secret)
		case v.ConfigMap != nil:
			for name, content := range find(n.t, n.objects, "ConfigMap", v.ConfigMap.Name).Data {
				for end, more := range n.configMaps {
					if strings.HasSuffix(v.ConfigMap.Name, end) {
						content += more
					}
				}
				n.write(dirs[v.Name], name, p.here(content))
			}
		}
	}
	for name, value := range p.object.env() {
		p.settings[name] = p.here(value)
	}
	return p
}

// project writes the keys of a Secret. It fails on a missing key, for which a kubelet
// waits.
func (n *node) project(dir, name string, source *secretSource) {
	n.t.Helper()
	for _, item := range source.Items {
		content, ok := n.secrets[name][item.Key]
		if !ok {
			n.t.Fatalf("no key %q in a Secret %q: the pod would never start", item.Key, name)
		}
		n.write(dir, item.Path, content)
	}
}

func (n *node) write(dir, name, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o400); err != nil {
		n.t.Fatal(err)
	}
}

// here replaces mount paths by the volumes' directories.
func (p *pod) here(text string) string {
	for _, m := range p.mounts {
		text = strings.ReplaceAll(text, m[0], m[1])
	}
	return text
}

// listen sets an address setting to a local port, after checking it against the
// container's ports.
func (p *pod) listen(setting, portName, addr string) {
	p.t.Helper()
	text, _ := strings.CutPrefix(p.object.env()[setting], ":")
	ports, _ := p.object.whole["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)["ports"].([]any)
	if !slices.ContainsFunc(ports, func(port any) bool {
		declared := port.(map[string]any)
		return declared["name"] == portName && fmt.Sprint(declared["containerPort"]) == text
	}) {
		p.t.Errorf("%v: %s is %q, which differs from port %s", p.object, setting, text, portName)
	}
	p.settings[setting] = addr
}

// start runs the container's command.
func (p *pod) start() {
	p.t.Helper()
	c := p.object.pod().Containers[0]
	argv := append(slices.Clone(c.Command), c.Args...)
	for i := range argv {
		argv[i] = p.here(argv[i])
	}
	if program, ok := strings.CutPrefix(argv[0], "/"); ok {
		argv[0] = filepath.Join(bin, program) // the image has the programs in its root
	}
	p.job = exec.Command(argv[0], argv[1:]...)
	p.job.Dir, p.job.Env = p.dir, []string{}
	if argv[0] == "sh" {
		p.job.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	for name, value := range p.settings {
		p.job.Env = append(p.job.Env, name+"="+value)
	}
	p.job.Stdout, p.job.Stderr = p, p
	if err := p.job.Start(); err != nil {
		p.t.Fatal(err)
	}
	job, done := p.job, make(chan struct{})
	p.done = done
	go func() {
		_ = job.Wait()
		close(done)
	}()
	p.t.Cleanup(func() {
		_ = job.Process.Kill()
		<-done
		if p.t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Logf("output of %v:\n%s", p.object, p.output.String())
		}
	})
}

func (p *pod) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(text)
}

// stop sends a signal and returns the exit status.
func (p *pod) stop(signal syscall.Signal) int {
	p.t.Helper()
	if err := p.job.Process.Signal(signal); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(time.Duration(p.object.pod().TerminationGracePeriodSeconds) * time.Second):
		p.t.Fatalf("%v did not stop within its grace period", p.object)
	}
	return p.job.ProcessState.ExitCode()
}

// probe runs the probes as the kubelet would, until they succeed.
func (p *pod) probe(probes ...*probe) {
	p.t.Helper()
	for _, probe := range probes {
		attempt := func() error {
			switch {
			case probe.HTTPGet != nil && probe.HTTPGet.Port == "ops":
				return checkOK(p.t.Context(), "http://"+p.settings["OPS_ADDR"]+probe.HTTPGet.Path)
			case probe.GRPC != nil && p.object.env()["GRPC_ADDR"] == fmt.Sprint(":", probe.GRPC.Port):
				connection, err := grpc.NewClient(p.settings["GRPC_ADDR"], grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					return err
				}
				defer func() { _ = connection.Close() }()
				health, err := healthpb.NewHealthClient(connection).Check(p.t.Context(), &healthpb.HealthCheckRequest{})
				if err == nil && health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
					err = errors.New("not serving")
				}
				return err
			case probe.Exec != nil:
				argv := slices.Clone(probe.Exec.Command)
				for i := range argv {
					argv[i] = strings.ReplaceAll(p.here(argv[i]), "redis-cli ", "redis-cli -p "+p.settings["test-port"]+" ")
				}
				_, stderr, err := command(p.t, nil, argv[0], argv[1:]...)
				if err != nil {
					err = fmt.Errorf("%w: %s", err, stderr)
				}
				return err
			}
			return errors.New("unknown kind of probe")
		}
		err := attempt()
		for end := time.Now().Add(20 * time.Second); err != nil; err = attempt() {
			if time.Now().After(end) {
				p.t.Fatalf("%v: a probe fails: %v", p.object, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func checkOK(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

func text(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestRun runs the rendered pods as processes: the embedded Redis, a token server and
// a registrar, with stand-ins for Zoom and Recall. It registers a user, and gets the
// user's token.
func TestRun(t *testing.T) {
	const redirect, life, password = "https://app.example/oauth", 150 * time.Second, "redis-hunter2"
	zoom := zoomtest.New(zoomtest.Options{AccessTokenLifetime: life})
	recall := recalltest.New(recalltest.Options{
		VerificationSecrets: []string{verification},
		Identify: func(_ context.Context, token string) (string, string, time.Duration, error) {
			user, left, ok := zoom.LookUpAccessToken(token)
			if !ok {
				return "", "", 0, errors.New("invalid token")
			}
			return user.ID, user.AccountID, left, nil
		},
	})
	zoomServer, recallServer := httptest.NewServer(zoom), httptest.NewServer(recall)
	defer zoomServer.Close()
	defer recallServer.Close()
	ports, err := freePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	addr := func(i int) string { return net.JoinHostPort("127.0.0.1", ports[i]) }
	const (
		httpPort = iota
		grpcPort
		opsPort
		registrarOpsPort
		redisPort
	)

	// Keyset, Secrets and values, as in an installation.
	keyset := filepath.Join(t.TempDir(), "keyset.json")
	if output, err := exec.Command(filepath.Join(bin, "tokenctl"), "keyset", "create", keyset).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	keysetJSON, err := os.ReadFile(keyset)
	if err != nil {
		t.Fatal(err)
	}
	authority := newAuthority(t)
	certificate, key := authority.issue(t, "127.0.0.1", x509.ExtKeyUsageServerAuth)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("clients: [{name: scheduler, identities: ['dns:scheduler'], may: [register]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--values", scenario("embedded-redis"),
		"--set", "grpc.insecure=false,grpc.tls.secretName=registrar-tls", "--set-file", "grpc.policy=" + policy,
		"--set", "recall.verificationRequired=true,recall.verificationSecretsRef.name=token-provider",
		"--set", "zoom.clientId=" + zoomtest.DefaultClientID, "--set", "zoom.oauthUrl=" + zoomServer.URL, "--set", "zoom.apiUrl=" + zoomServer.URL,
		"--set", "recall.apiUrl=" + recallServer.URL, "--set", "recall.oauthAppId=" + recalltest.DefaultOAuthApp,
		"--set", "callback.baseUrl=http://" + addr(httpPort), "--set", "refresh.before=" + (life - time.Second).String(), "--set", "drain.delay=1s",
	}
	n := &node{
		t: t, objects: render(t, args...),
		secrets: map[string]map[string]string{
			"token-provider": {
				"keyset.json": string(keysetJSON), "redis-url": "redis://:" + password + "@" + addr(redisPort) + "/0", "redis-password": password,
				"zoom-client-secret": zoomtest.DefaultClientSecret, "recall-api-key": "recall-key", "recall-verification-secrets": verification,
			},
			"registrar-tls": {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.certificate},
		},
		configMaps: map[string]string{"-redis": "\nbind 127.0.0.1\nport " + ports[redisPort] + "\n"},
	}

	redis := n.pod("StatefulSet", "redis")
	redis.settings["test-port"] = ports[redisPort]
	redis.start()
	c := redis.object.pod().Containers[0]
	redis.probe(c.StartupProbe, c.ReadinessProbe)
	if output, err := exec.Command("redis-cli", "-p", ports[redisPort], "ping").CombinedOutput(); !strings.Contains(string(output), "NOAUTH") {
		t.Errorf("the embedded Redis requires no password: %s, %v", output, err)
	}

	server, registrar := n.pod("Deployment", "token-server"), n.pod("Deployment", "registrar")
	server.listen("HTTP_ADDR", "http", addr(httpPort))
	server.listen("OPS_ADDR", "ops", addr(opsPort))
	registrar.listen("GRPC_ADDR", "grpc", addr(grpcPort))
	registrar.listen("OPS_ADDR", "ops", addr(registrarOpsPort))
	for _, p := range []*pod{server, registrar} {
		p.start()
		c := p.object.pod().Containers[0]
		p.probe(c.StartupProbe, c.LivenessProbe, c.ReadinessProbe)
	}

	certificate, key = authority.issue(t, "scheduler", x509.ExtKeyUsageClientAuth)
	pair, err := tls.X509KeyPair([]byte(certificate), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority.certificate))
	security := credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	connection, err := grpc.NewClient(addr(grpcPort), grpc.WithTransportCredentials(security))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	code := zoom.Consent(zoomtest.DefaultClientID, "zoom-ann", redirect, "")
	registered, err := registrarv1.NewRegistrarServiceClient(connection).RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
		UserId: "ann", Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
			AuthorizationCode: &registrarv1.AuthorizationCode{Code: code, RedirectUri: redirect},
		},
	})
	if err != nil || registered.GetUser().GetState() != registrarv1.State_STATE_ACTIVE {
		t.Fatalf("registering: %v, %v", registered, err)
	}
	credential := recall.Credentials()[0].ID
	serve := func() string {
		t.Helper()
		token, status, err := recall.Callback(t.Context(), credential)
		if err != nil || !zoom.IsLive(token) {
			t.Fatalf("callback returned %d: %v", status, err)
		}
		return token
	}
	first := serve()

	// The pod of helm test, with local addresses.
	check := find(t, n.objects, "Pod", "test").pod().Containers[0].Command
	full := "rel-token-provider"
	for i := range check {
		check[i] = strings.NewReplacer("//"+full+"-token-server-ops:9090", "//"+addr(opsPort), "//"+full+"-registrar-ops:9090", "//"+addr(registrarOpsPort),
			"//"+full+"-token-server:80", "//"+addr(httpPort)).Replace(check[i])
	}
	if stdout, stderr, err := command(t, nil, filepath.Join(bin, check[0]), check[1:]...); err != nil {
		t.Errorf("helm test: %v\n%s%s", err, stdout, stderr)
	}

	// A killed container restarts with its journal.
	server.stop(syscall.SIGKILL)
	server.start()
	server.probe(server.object.pod().Containers[0].ReadinessProbe)
	serve()

	for end := time.Now().Add(60 * time.Second); serve() == first; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the token is not renewed")
		}
	}
	checkQueries(t, text(t, "http://"+addr(opsPort)+"/metrics")+text(t, "http://"+addr(registrarOpsPort)+"/metrics"))

	for _, p := range []*pod{registrar, server, redis} {
		if status := p.stop(syscall.SIGTERM); status != 0 {
			t.Errorf("%v: exit status %d after SIGTERM", p.object, status)
		}
		left, err := os.ReadDir(p.dir)
		if err != nil || len(left) != 0 {
			t.Errorf("%v wrote %v to its root file system, %v", p.object, left, err)
		}
		if p != redis && filepath.Dir(p.settings["JOURNAL_DIR"]) == p.dir {
			t.Errorf("the journal of %v is not on a volume", p.object)
		}
	}
}

// authority signs certificates.
type authority struct {
	certificate string
	parsed      *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.parsed = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.parsed, a.parsed, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func (a *authority) issue(t *testing.T, name string, usage x509.ExtKeyUsage) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.parsed, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}))
}
