package e2e_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/zoomtest"
)

// TestExampleRegisters starts examples/register before the registrar is up.
func TestExampleRegisters(t *testing.T) {
	t.Parallel()
	s := newStack(t, time.Hour)
	example := filepath.Join(t.TempDir(), "register")
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-o", example, "tokenprovider/examples/register").CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, output)
	}
	const redirect = "https://app.example/oauth"
	addr := freeAddr(t)
	run := func(user, code string) (stop func() (string, error)) {
		command := exec.CommandContext(t.Context(), example, "--addr", addr, "--user", user, "--redirect-uri", redirect)
		command.Stdin = strings.NewReader(code + "\n")
		var output bytes.Buffer
		command.Stdout, command.Stderr = &output, &output
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		return func() (string, error) {
			err := command.Wait()
			return output.String(), err
		}
	}
	wait := run("ann", s.zoom.Consent(zoomtest.DefaultClientID, "zoom-ann", redirect, ""))
	_, base, _ := s.tokenServer()
	launch(t, "registrar", append(s.env, "GRPC_ADDR="+addr, "GRPC_INSECURE=true", "CALLBACK_BASE_URL="+base))
	if output, err := wait(); err != nil || !strings.Contains(output, "ann is STATE_ACTIVE") {
		t.Errorf("output of the example: %q, %v", output, err)
	}
	if output, err := run("bob", "nonsense")(); err == nil || !strings.Contains(output, "the user must consent again") || strings.Contains(output, "nonsense") {
		t.Errorf("output with a code that Zoom refuses: %q, %v", output, err)
	}
}
