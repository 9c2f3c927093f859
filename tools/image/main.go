// Command image builds the container image as an OCI archive, and its SBOM. It
// needs no Docker engine. The build is reproducible: the same commit and Go
// release give the same bytes on any machine.
//
//	go run . -out dist/token-provider.tar
//	go run . -push registry.example.com/token-provider:0.1.0
//
// The image has the three programs and the public CAs, runs as user 65532, and
// contains nothing else.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// programs lists the programs in the image, each in its root directory.
var programs = []string{"tokenserver", "registrar", "tokenctl"}

const (
	user  = "65532:65532" // unprivileged, as in the distroless images
	caDir = "etc/ssl/certs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	root := flags.String("root", "../..", "Directory of the product's module.")
	out := flags.String("out", "", "OCI archive to write, with its SBOM beside it as .spdx.json")
	push := flags.String("push", "", "reference to push to, with the credentials of docker's or podman's login")
	arches := flags.String("arch", "amd64,arm64", "architectures, separated by commas")
	version := flags.String("version", "", "release, for the labels; the commit if empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" && *push == "" {
		return errors.New("-out or -push is required")
	}
	source, err := readSource(ctx, *root)
	if err != nil {
		return err
	}
	if *version != "" {
		source.version = *version
	}
	built, err := build(ctx, *root, source, strings.Split(*arches, ","))
	if err != nil {
		return err
	}
	digest, err := built.index.Digest()
	if err != nil {
		return err
	}
	if *out != "" {
		if err := writeArchive(*out, built.index, source.time); err != nil {
			return err
		}
		sbom := strings.TrimSuffix(*out, ".tar") + ".spdx.json"
		if err := os.WriteFile(sbom, built.sbom(source, digest.String()), 0o600); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(stdout, "%s\n%s\n", *out, sbom)
	}
	if *push != "" {
		ref, err := name.ParseReference(*push)
		if err != nil {
			return err
		}
		if err := remote.WriteIndex(ref, built.index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return fmt.Errorf("pushing to %s: %w", ref, err)
		}
		_, _ = fmt.Fprintf(stdout, "%s@%s\n", ref.Context(), digest)
	}
	_, _ = fmt.Fprintln(stdout, "digest", digest)
	return nil
}

// source is the commit of the build.
type source struct {
	commit, version string
	time            time.Time
}

func readSource(ctx context.Context, root string) (source, error) {
	git := exec.CommandContext(ctx, "git", "-C", root, "log", "-1", "--format=%H %ct") //nolint:gosec // the caller sets the directory
	output, err := git.Output()
	if err != nil {
		return source{}, fmt.Errorf("reading the commit from git: %w", err)
	}
	commit, seconds, _ := strings.Cut(strings.TrimSpace(string(output)), " ")
	at, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return source{}, fmt.Errorf("reading the commit's time: %w", err)
	}
	return source{commit: commit, version: commit[:12], time: time.Unix(at, 0).UTC()}, nil
}

// image is the result of the build.
type image struct {
	index   v1.ImageIndex
	modules map[string]module // by path and version
}

type module struct{ path, version, sum string }

func build(ctx context.Context, root string, s source, arches []string) (*image, error) {
	built := &image{modules: map[string]module{}}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	roots, err := layer(s.time, []file{{name: caDir + "/ca-certificates.crt", mode: 0o444, content: certificates()}})
	if err != nil {
		return nil, err
	}
	for _, arch := range arches {
		binaries, err := built.compile(ctx, root, arch)
		if err != nil {
			return nil, err
		}
		code, err := layer(s.time, binaries)
		if err != nil {
			return nil, err
		}
		one, err := assemble(s, arch, roots, code)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	built.index = index
	return built, nil
}

// compile builds the programs for an architecture and records their modules.
func (i *image) compile(ctx context.Context, root, arch string) ([]file, error) {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var files []file
	for _, program := range programs {
		path := filepath.Join(dir, program)
		// With the commit, for --version; without paths and symbols.
		compiler := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=true", "-ldflags", "-s -w -buildid=", "-o", path, "./cmd/"+program) //nolint:gosec // our own programs
		compiler.Dir = root
		compiler.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOTOOLCHAIN=local", "GOAMD64=v1", "GOWORK=off")
		if output, err := compiler.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building %s: %w\n%s", program, err, output)
		}
		content, err := os.ReadFile(path) //nolint:gosec // just built
		if err != nil {
			return nil, err
		}
		info, err := buildinfo.Read(bytes.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("reading the build information of %s: %w", program, err)
		}
		i.modules["stdlib"] = module{path: "stdlib", version: strings.TrimPrefix(info.GoVersion, "go")}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			i.modules[m.Path+"@"+m.Version] = module{path: m.Path, version: m.Version, sum: m.Sum}
		}
		files = append(files, file{name: program, mode: 0o555, content: content})
	}
	return files, nil
}

// certificates returns the public CAs as PEM, from a module of a pinned version.
func certificates() []byte {
	var all bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue // PEM cannot express the constraints of such a CA
		}
		_ = pem.Encode(&all, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // to memory
	}
	return all.Bytes()
}

func assemble(s source, arch string, layers ...v1.Layer) (v1.Image, error) {
	one := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	one, err := mutate.AppendLayers(one, layers...)
	if err != nil {
		return nil, err
	}
	config, err := one.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Author, config.OS, config.Architecture, config.Created = "", "linux", arch, v1.Time{Time: s.time}
	config.Config = v1.Config{
		User: user, WorkingDir: "/", Cmd: []string{"/tokenctl", "--help"},
		Env: []string{"PATH=/"}, // for `kubectl exec … -- tokenctl`
		Labels: map[string]string{
			"org.opencontainers.image.title":       "token-provider",
			"org.opencontainers.image.description": "Serves Zoom access tokens to Recall.ai, and keeps them fresh: tokenserver, registrar, tokenctl",
			"org.opencontainers.image.version":     s.version,
			"org.opencontainers.image.revision":    s.commit,
			"org.opencontainers.image.created":     s.time.Format(time.RFC3339),
		},
	}
	for i := range config.History {
		config.History[i].Created = v1.Time{Time: s.time}
	}
	return mutate.ConfigFile(one, config)
}

type file struct {
	name    string
	mode    int64
	content []byte
}

// layer returns a layer with the files and their directories.
func layer(at time.Time, files []file) (v1.Layer, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	add := func(header *tar.Header, content []byte) error {
		header.ModTime, header.Format = at, tar.FormatPAX
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	for _, f := range files {
		parts := strings.Split(f.name, "/")
		for i := 1; i < len(parts); i++ {
			if err := add(&tar.Header{Typeflag: tar.TypeDir, Name: strings.Join(parts[:i], "/") + "/", Mode: 0o555}, nil); err != nil {
				return nil, err
			}
		}
		if err := add(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.content))}, f.content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(out.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// writeArchive writes the index as an OCI layout in a tar file, which skopeo, crane,
// podman and docker can load.
func writeArchive(path string, index v1.ImageIndex, at time.Time) (err error) {
	dir, err := os.MkdirTemp("", "layout-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := written.AppendIndex(index); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	target, err := os.Create(path) //nolint:gosec // the caller sets it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	archive := tar.NewWriter(target)
	err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name) //nolint:gosec // our own
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: filepath.ToSlash(relative), Mode: 0o644, Size: int64(len(content)), ModTime: at, Format: tar.FormatPAX,
		}); err != nil {
			return err
		}
		_, err = archive.Write(content)
		return err
	})
	return errors.Join(err, archive.Close())
}

// sbom returns the modules of the programs as SPDX 2.3.
func (i *image) sbom(s source, digest string) []byte {
	type checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	type reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	type pkg struct {
		ID        string      `json:"SPDXID"`
		Name      string      `json:"name"`
		Version   string      `json:"versionInfo"`
		Location  string      `json:"downloadLocation"`
		Analyzed  bool        `json:"filesAnalyzed"`
		Licence   string      `json:"licenseConcluded"`
		Checksums []checksum  `json:"checksums,omitempty"`
		Refs      []reference `json:"externalRefs,omitempty"`
	}
	type relation struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
	const image = "SPDXRef-image"
	packages := []pkg{{
		ID: image, Name: "token-provider", Version: s.version, Location: "NOASSERTION", Licence: "NOASSERTION",
		Checksums: []checksum{{"SHA256", strings.TrimPrefix(digest, "sha256:")}},
	}}
	relations := []relation{{"SPDXRef-DOCUMENT", "DESCRIBES", image}}
	keys := make([]string, 0, len(i.modules))
	for key := range i.modules {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		m := i.modules[key]
		hash := sha256.Sum256([]byte(key))
		id := "SPDXRef-" + hex.EncodeToString(hash[:8])
		packages = append(packages, pkg{
			ID: id, Name: m.path, Version: m.version, Location: "NOASSERTION", Licence: "NOASSERTION",
			Refs: []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.path + "@" + m.version}},
		})
		relations = append(relations, relation{image, "CONTAINS", id})
	}
	document, _ := json.MarshalIndent(map[string]any{ // strings and slices of them
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
		"name": "token-provider " + s.version, "documentNamespace": "https://spdx.org/spdxdocs/token-provider-" + strings.TrimPrefix(digest, "sha256:"),
		"creationInfo": map[string]any{"created": s.time.Format(time.RFC3339), "creators": []string{"Tool: tokenprovider/tools/image", "Tool: " + runtime.Version()}},
		"packages":     packages, "relationships": relations,
	}, "", "  ")
	return append(document, '\n')
}
