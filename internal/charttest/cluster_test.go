//go:build chart

package charttest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The cluster is etcd and a kube-apiserver on loopback, shared by all tests. It has
// no nodes and no controllers: objects are validated and admitted, but nothing runs.
var (
	cluster     sync.Once
	clusterErr  error
	clusterDir  string
	clusterJobs []*exec.Cmd
)

// startCluster starts the cluster once, and points kubectl and Helm to it.
func startCluster(t *testing.T) {
	t.Helper()
	cluster.Do(func() { clusterErr = runCluster() })
	if clusterErr != nil {
		t.Fatalf("starting the API server: %v", clusterErr)
	}
}

func stopCluster() {
	for _, job := range clusterJobs {
		_ = job.Process.Kill()
		_ = job.Wait()
	}
	if clusterDir != "" {
		_ = os.RemoveAll(clusterDir)
	}
}

func runCluster() (err error) {
	if clusterDir, err = os.MkdirTemp("", "charttest-cluster-"); err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(clusterDir, name) }
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	for name, content := range map[string]string{
		"sa.key":     string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"sa.pub":     string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"tokens.csv": "test,admin,admin,system:masters\n",
		"kubeconfig": fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: test,
clusters: [{name: test, cluster: {server: "https://127.0.0.1:%s", insecure-skip-tls-verify: true}}],
users: [{name: admin, user: {token: test}}],
contexts: [{name: test, context: {cluster: test, user: admin}}]}`, ports[2]),
	} {
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	for _, job := range [][]string{
		{
			"etcd", "--data-dir", file("etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--unsafe-no-fsync",
		},
		{
			"kube-apiserver", "--etcd-servers=" + client, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + ports[2],
			"--cert-dir=" + file("certs"), "--service-account-issuer=https://127.0.0.1:" + ports[2],
			"--service-account-key-file=" + file("sa.pub"), "--service-account-signing-key-file=" + file("sa.key"),
			"--token-auth-file=" + file("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/24",
			// No controller creates the ServiceAccounts that this plugin requires.
			"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
		},
	} {
		output, err := os.Create(file(job[0] + ".log"))
		if err != nil {
			return err
		}
		command := exec.Command(filepath.Join(tools, job[0]), job[1:]...)
		command.Stdout, command.Stderr = output, output
		if err := command.Start(); err != nil {
			return err
		}
		clusterJobs = append(clusterJobs, command)
	}
	if err := os.Setenv("KUBECONFIG", file("kubeconfig")); err != nil {
		return err
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		output, err := exec.Command(filepath.Join(tools, "kubectl"), "get", "--raw", "/readyz").CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(file("kube-apiserver.log"))
			return errors.Join(fmt.Errorf("not ready: %s", output), fmt.Errorf("log: %s", log))
		}
	}
	// Some scenarios use the optional CRDs.
	output, err := exec.Command(filepath.Join(tools, "kubectl"), "apply", "--server-side", "--filename", filepath.Join(tools, "crds")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	output, err = exec.Command(filepath.Join(tools, "kubectl"), "wait", "--for=condition=Established", "--timeout=30s", "customresourcedefinitions", "--all").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

// freePorts returns n ports that the kernel reports as free.
func freePorts(n int) (ports []string, err error) {
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = listener.Close() }()
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// newNamespace creates a namespace that enforces the restricted standard.
func newNamespace(t *testing.T) string {
	t.Helper()
	startCluster(t)
	name := "t-" + strings.Trim(strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())), "-")
	must(t, "kubectl", "create", "namespace", name)
	must(t, "kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
	return name
}
