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

// node stands in for a kubelet: it makes the volumes of a rendered pod on disk,
// and runs its container as a process, with the rendered command, environment
// and files. What differs from a pod: paths and ports are of this machine, and
// nothing isolates the process.
type node struct {
	t          *testing.T
	objects    []object
	secrets    map[string]map[string]string // name -> key -> content
	configMaps map[string]string            // what is added to a ConfigMap's files, by its name's end
}

// pod is a pod's volumes, which outlive its container.
type pod struct {
	*node
	object   object
	mounts   [][2]string       // mount path, folder; longest path first
	settings map[string]string // the environment, paths put right
	dir      string            // working directory: nothing is to be written there

	mu   sync.Mutex
	said bytes.Buffer
	job  *exec.Cmd
	done chan struct{}
}

func (n *node) pod(kind, component string) *pod {
	n.t.Helper()
	p := &pod{node: n, object: find(n.t, n.objects, kind, component), dir: n.t.TempDir(), settings: map[string]string{}}
	spec := p.object.pod()
	folders := map[string]string{}
	for i, m := range spec.Containers[0].VolumeMounts {
		folder, ok := folders[m.Name]
		if !ok {
			folder = filepath.Join(n.t.TempDir(), "volume"+strconv.Itoa(i))
			if err := os.Mkdir(folder, 0o700); err != nil {
				n.t.Fatal(err)
			}
			folders[m.Name] = folder
		}
		p.mounts = append(p.mounts, [2]string{m.MountPath, folder})
	}
	slices.SortFunc(p.mounts, func(a, b [2]string) int { return len(b[0]) - len(a[0]) })
	for _, v := range spec.Volumes {
		if folders[v.Name] == "" {
			n.t.Errorf("%v: volume %s is mounted nowhere", p.object, v.Name)
			continue
		}
		switch {
		case v.Projected != nil:
			for _, source := range v.Projected.Sources {
				n.project(folders[v.Name], source.Secret.Name, source.Secret)
			}
		case v.Secret != nil:
			n.project(folders[v.Name], v.Secret.SecretName, v.Secret)
		case v.ConfigMap != nil:
			for name, content := range find(n.t, n.objects, "ConfigMap", v.ConfigMap.Name).Data {
				for end, more := range n.configMaps {
					if strings.HasSuffix(v.ConfigMap.Name, end) {
						content += more
					}
				}
				n.write(folders[v.Name], name, p.here(content))
			}
		}
	}
	for name, value := range p.object.env() {
		p.settings[name] = p.here(value)
	}
	return p
}

// project writes the keys of a Secret, as a kubelet does, which waits for a key
// that is not there.
func (n *node) project(folder, name string, source *secretSource) {
	n.t.Helper()
	for _, item := range source.Items {
		content, ok := n.secrets[name][item.Key]
		if !ok {
			n.t.Fatalf("no key %q in a Secret %q: the pod would wait for ever", item.Key, name)
		}
		n.write(folder, item.Path, content)
	}
}

func (n *node) write(folder, name, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o400); err != nil {
		n.t.Fatal(err)
	}
}

// here puts the folders of the volumes for their mount paths.
func (p *pod) here(text string) string {
	for _, m := range p.mounts {
		text = strings.ReplaceAll(text, m[0], m[1])
	}
	return text
}

// listen moves a setting to a port of this machine, once it agrees with the
// container's ports.
func (p *pod) listen(setting, portName, addr string) {
	p.t.Helper()
	text, _ := strings.CutPrefix(p.object.env()[setting], ":")
	ports, _ := p.object.whole["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)["ports"].([]any)
	if !slices.ContainsFunc(ports, func(port any) bool {
		declared := port.(map[string]any)
		return declared["name"] == portName && fmt.Sprint(declared["containerPort"]) == text
	}) {
		p.t.Errorf("%v: %s is %q, and port %s is another", p.object, setting, text, portName)
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
			p.t.Logf("%v said:\n%s", p.object, p.said.String())
		}
	})
}

func (p *pod) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(text)
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

// probe asks as the kubelet would until it is content.
func (p *pod) probe(probes ...*probe) {
	p.t.Helper()
	for _, probe := range probes {
		ask := func() error {
			switch {
			case probe.HTTPGet != nil && probe.HTTPGet.Port == "ops":
				return answers(p.t.Context(), "http://"+p.settings["OPS_ADDR"]+probe.HTTPGet.Path)
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
			return errors.New("a probe of no known kind")
		}
		err := ask()
		for end := time.Now().Add(20 * time.Second); err != nil; err = ask() {
			if time.Now().After(end) {
				p.t.Fatalf("%v: a probe fails: %v", p.object, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func answers(ctx context.Context, url string) error {
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

// TestRun runs what the chart renders: the embedded Redis, a token server and a
// registrar as processes, with Zoom and Recall as stand-ins. A user is
// registered and served through them.
func TestRun(t *testing.T) {
	const redirect, life, password = "https://app.example/oauth", 150 * time.Second, "redis-hunter2"
	zoom := zoomtest.New(zoomtest.Options{AccessTokenLife: life})
	recall := recalltest.New(recalltest.Options{
		VerificationSecrets: []string{verification},
		Identify: func(_ context.Context, token string) (string, string, time.Duration, error) {
			user, left, ok := zoom.Whose(token)
			if !ok {
				return "", "", 0, errors.New("dead token")
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

	// As a user would: a keyset, a Secret, values.
	keyset := filepath.Join(t.TempDir(), "keyset.json")
	if output, err := exec.Command(filepath.Join(bin, "tokenctl"), "keyset", "create", keyset).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	sealed, err := os.ReadFile(keyset)
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
				"keyset.json": string(sealed), "redis-url": "redis://:" + password + "@" + addr(redisPort) + "/0", "redis-password": password,
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
		t.Errorf("the embedded Redis asks for no password: %s, %v", output, err)
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
		if err != nil || !zoom.Live(token) {
			t.Fatalf("a callback is answered %d: %v", status, err)
		}
		return token
	}
	first := serve()

	// The pod of helm test, with its Services' addresses put right.
	check := find(t, n.objects, "Pod", "test").pod().Containers[0].Command
	full := "rel-token-provider"
	for i := range check {
		check[i] = strings.NewReplacer("//"+full+"-token-server-ops:9090", "//"+addr(opsPort), "//"+full+"-registrar-ops:9090", "//"+addr(registrarOpsPort),
			"//"+full+"-token-server:80", "//"+addr(httpPort)).Replace(check[i])
	}
	if stdout, stderr, err := command(t, nil, filepath.Join(bin, check[0]), check[1:]...); err != nil {
		t.Errorf("helm test: %v\n%s%s", err, stdout, stderr)
	}

	// A container that is killed is started again, and finds its journal.
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
			t.Errorf("%v: exit status %d when told to stop", p.object, status)
		}
		left, err := os.ReadDir(p.dir)
		if err != nil || len(left) != 0 {
			t.Errorf("%v has written %v to its root file system, %v", p.object, left, err)
		}
		if p != redis && filepath.Dir(p.settings["JOURNAL_DIR"]) == p.dir {
			t.Errorf("%v has its journal on no volume", p.object)
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
