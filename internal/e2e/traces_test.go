package e2e_test

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// span is a span in the format of the SDK's console exporter.
type span struct {
	Name        string
	SpanContext struct{ TraceID, SpanID string }
	Parent      struct{ TraceID, SpanID string }
	Links       []struct{ SpanContext struct{ TraceID string } }
	Attributes  []struct {
		Key   string
		Value struct{ Value any }
	}
	program string
}

func (s span) attribute(key string) any {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.Value
		}
	}
	return nil
}

// spans returns the spans in a program's output.
func spans(p *process) (all []span) {
	text := p.log()
	for {
		start := strings.Index(text, "{")
		if start < 0 {
			return all
		}
		text = text[start:]
		decoder := json.NewDecoder(strings.NewReader(text))
		var s span
		if err := decoder.Decode(&s); err == io.ErrUnexpectedEOF { //nolint:errorlint // as the decoder returns it
			return all
		} else if err == nil && s.SpanContext.TraceID != "" {
			s.program = p.name
			all = append(all, s)
		}
		text = text[max(1, decoder.InputOffset()):]
	}
}

// TestTraces: one trace has a registration, from the gRPC call to the calls to Zoom and
// Recall. Another has a renewal, from the claim to the commit.
func TestTraces(t *testing.T) {
	t.Parallel()
	s := newStack(t, 150*time.Second)
	s.env = append(s.env, "OTEL_TRACES_EXPORTER=console", "OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_TRACES_SAMPLER=always_on")
	server, base, _ := s.tokenServer()
	registrar, client, _ := s.registrar(base)
	code := s.zoom.Consent(zoomtest.DefaultClientID, "zoom-ann", "https://app.example/oauth", "")
	if _, err := client.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
		UserId: "ann", Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
			AuthorizationCode: &registrarv1.AuthorizationCode{Code: code, RedirectUri: "https://app.example/oauth"},
		},
	}); err != nil {
		t.Fatal(err)
	}
	find := func(p *process, match func(span) bool) (found span) {
		t.Helper()
		waitUntil(t, "the span is exported", 60*time.Second, func() bool {
			all := spans(p)
			i := slices.IndexFunc(all, match)
			if i >= 0 {
				found = all[i]
			}
			return i >= 0
		})
		return found
	}
	call := find(registrar, func(s span) bool { return strings.HasSuffix(s.Name, "RegistrarService/RegisterUser") })
	to := func(url, trace string) func(span) bool {
		return func(s span) bool {
			address, _ := s.attribute("url.full").(string)
			return strings.Contains(address, url) && s.SpanContext.TraceID == trace
		}
	}
	find(registrar, to("/oauth/token", call.SpanContext.TraceID))
	find(registrar, to("/api/v2/zoom-oauth-credentials/", call.SpanContext.TraceID))

	renewal := find(server, func(s span) bool { return s.Name == "renew" })
	if renewal.attribute("grant") == nil || renewal.attribute("planned") != true {
		t.Errorf("the renewal's attributes: %+v", renewal.Attributes)
	}
	find(server, to("/oauth/token", renewal.SpanContext.TraceID))
	find(server, func(s span) bool { // the commit
		return strings.HasPrefix(strings.ToLower(s.Name), "eval") && s.SpanContext.TraceID == renewal.SpanContext.TraceID
	})

	credential := s.recall.Credentials()[0].AccessTokenCallbackURL
	for _, p := range []*process{server, registrar} {
		for _, secret := range []string{code, credential[strings.LastIndex(credential, "/")+1:], s.callBack(s.recall.Credentials()[0].ID)} {
			if strings.Contains(p.log(), secret) {
				t.Errorf("a trace of the %s has a secret", p.name)
			}
		}
		if strings.Contains(p.log(), "/oauth/token?") {
			t.Error("a traced URL has a query")
		}
	}
}
