package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// checkout returns a clean checkout in a new directory: the image must not depend on
// the build's directory.
func checkout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "checkout")
	if output, err := exec.Command("git", "clone", "-q", "../..", dir).CombinedOutput(); err != nil {
		t.Fatalf("git clone: %v\n%s", err, output)
	}
	return dir
}

// TestImage builds the last commit twice, in two directories, pushes it to a registry,
// and checks the pulled image.
func TestImage(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	reference := strings.TrimPrefix(server.URL, "http://") + "/token-provider:test"
	dist := t.TempDir()
	var digests []string
	for i, root := range []string{checkout(t), checkout(t)} {
		archive := filepath.Join(dist, string(rune('a'+i))+".tar")
		var said bytes.Buffer
		if err := run(t.Context(), []string{"-root", root, "-out", archive, "-push", reference, "-version", "1.2.3"}, &said); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		digests = append(digests, lines[len(lines)-1])
	}
	if digests[0] != digests[1] {
		t.Errorf("the image depends on the directory: %v", digests)
	}
	one, errOne := os.ReadFile(filepath.Join(dist, "a.tar"))
	two, errTwo := os.ReadFile(filepath.Join(dist, "b.tar"))
	if errOne != nil || errTwo != nil || !bytes.Equal(one, two) {
		t.Error("the archive depends on the directory")
	}

	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 2 {
		t.Fatalf("%d images in the index, %v, want 2", len(manifest.Manifests), err)
	}
	for _, descriptor := range manifest.Manifests {
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			t.Fatal(err)
		}
		look(t, image, descriptor.Platform.Architecture)
	}

	var sbom struct {
		Packages []struct{ Name, VersionInfo string }
	}
	content, err := os.ReadFile(filepath.Join(dist, "a.spdx.json"))
	if err != nil || json.Unmarshal(content, &sbom) != nil {
		t.Fatalf("reading the SBOM: %v", err)
	}
	for _, want := range []string{"stdlib", "github.com/redis/go-redis/v9", "google.golang.org/grpc"} {
		if !slices.ContainsFunc(sbom.Packages, func(p struct{ Name, VersionInfo string }) bool { return p.Name == want && p.VersionInfo != "" }) {
			t.Errorf("%s is not in the SBOM", want)
		}
	}
}

func look(t *testing.T, image v1.Image, arch string) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != arch || config.Config.User != "65532:65532" || !slices.Contains(config.Config.Env, "PATH=/") {
		t.Errorf("%s, user %q, environment %q", config.Architecture, config.Config.User, config.Config.Env)
	}
	for label, want := range map[string]string{"title": "token-provider", "version": "1.2.3"} {
		if got := config.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	dir := t.TempDir()
	content := mutate.Extract(image)
	defer func() { _ = content.Close() }()
	var names []string
	for files := tar.NewReader(content); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Mode&0o222 != 0 || header.Uid != 0 {
			t.Errorf("%s is writable by the image's user", header.Name)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		names = append(names, header.Name)
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(header.Name)), data, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	if want := []string{"etc/ssl/certs/ca-certificates.crt", "registrar", "tokenctl", "tokenserver"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		roots++
	}
	if roots < 100 {
		t.Errorf("%d CAs, want more than 100", roots)
	}
	if arch != runtime.GOARCH {
		return // the other one cannot be run here
	}
	commit := config.Config.Labels["org.opencontainers.image.revision"]
	for _, program := range programs {
		output, err := exec.Command(filepath.Join(dir, program), "--version").CombinedOutput()
		if err != nil || !strings.Contains(string(output), commit[:12]) {
			t.Errorf("%s --version: %q, %v, want the commit %s", program, output, err, commit[:12])
		}
	}
}

func TestNothingToDo(t *testing.T) {
	if err := run(t.Context(), nil, io.Discard); err == nil {
		t.Error("run succeeded")
	}
}
