package secret_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"tokenprovider/internal/secret"
)

func TestTextIsNeverShown(t *testing.T) {
	const plain = "hunter2"
	s := secret.New(plain)
	type holder struct {
		S secret.Text
		P *secret.Text
	}
	h := holder{s, &s}

	asJSON, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	zap.New(core).Info("x", zap.Any("holder", h), zap.Stringer("s", s), zap.Any("s2", s), zap.Reflect("s3", &s))
	logged := fmt.Sprintf("%+v", logs.All()[0].ContextMap())

	shown := []string{string(asJSON), logged, s.String(), fmt.Errorf("oops: %v", s).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, h), fmt.Sprintf(verb, []secret.Text{s}))
	}
	for _, text := range shown {
		if strings.Contains(text, plain) || strings.Contains(text, fmt.Sprintf("%x", plain)) {
			t.Errorf("the secret is shown in %q", text)
		}
	}
	if s.Reveal() != plain {
		t.Errorf("Reveal() = %q, want the secret", s.Reveal())
	}
}

func TestEqual(t *testing.T) {
	var read secret.Text
	if err := read.UnmarshalText([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if !read.Equal(secret.New("a")) || read.Equal(secret.New("b")) || read.Equal(secret.New("aa")) {
		t.Error("Equal must hold for the same text only")
	}
	if read.IsZero() || !(secret.Text{}).IsZero() {
		t.Error("IsZero must hold for the empty secret only")
	}
}
