package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"tokenprovider/internal/admin/doctor"
	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/recall"
)

type doctorCommand struct {
	Timeout time.Duration `default:"10s" help:"Maximum time of a check."`
	Verbose bool          `short:"v" help:"Duration of each check in the output."`

	app.Storage
	config.Zoom
	config.Recall
	config.Certificates
	config.Registrar

	faults config.Faults
}

// Help implements [kong.HelpProvider].
func (*doctorCommand) Help() string {
	return `All checks run concurrently. None makes a lasting change, spends a token, or creates anything at Recall: the checks send Zoom an invalid refresh token, and the callback URL an unknown secret. Settings that are not set are not checked: run it with the settings of a token server, and again with those of a registrar.

Examples:

  kubectl exec deploy/token-provider-registrar -- tokenctl doctor

  tokenctl doctor -o json | jq 'select(.verdict == "fault")'`
}

// Check implements [config.Checker].
func (d *doctorCommand) Check(fault func(setting, text string)) {
	d.Storage.Check(fault)
	if d.ZoomAppsFile != "" || d.ZoomClientID != "" || !d.ZoomClientSecret.IsZero() {
		d.Zoom.Check(fault)
	}
	d.Recall.Check(fault)
	d.Registrar.Check(fault)
}

// IsOptional implements [config.OptionalSettings]: each program lacks some settings.
func (*doctorCommand) IsOptional(setting string) bool {
	return setting != "REDIS_URL" && setting != "KEYSET_FILE"
}

// Tolerate implements [config.IgnoresSettings]: an invalid setting is a finding.
func (d *doctorCommand) Tolerate(faults config.Faults) { d.faults = faults }

func (d *doctorCommand) config() (doctor.Config, func()) {
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	c := doctor.Config{
		SettingProblems: d.faults, Redis: d.Connection(), Keyset: d.Keyset(), WaitReplicas: d.RedisWaitReplicas,
		ZoomURL: d.ZoomOAuthURL, RecallURL: d.RecallAPIURL, Callback: d.CallbackBaseURL, JournalDir: d.JournalDir, HTTP: client,
	}
	closing := func() {}
	if !d.RecallAPIKey.IsZero() {
		c.Recall = recall.New(recall.Config{APIURL: d.RecallAPIURL, APIKey: d.RecallAPIKey, HTTP: client})
	} else {
		c.RecallURL = nil
	}
	if d.ZoomAppsFile != "" || d.ZoomClientID != "" && !d.ZoomClientSecret.IsZero() {
		for _, one := range d.Apps(config.App{OAuthApp: d.RecallOAuthAppID}, "").List() {
			if one.ClientID != "" {
				c.Apps = append(c.Apps, doctor.App{Name: one.Name, ClientID: one.ClientID, OAuthApp: one.OAuthApp, Zoom: app.ZoomClient(one, client, nil)})
			}
		}
	}
	for _, file := range []doctor.CertificateFile{
		{Setting: "GRPC_TLS_CERT_FILE", Path: d.GRPCTLSCertFile, KeyPath: d.GRPCTLSKeyFile},
		{Setting: "GRPC_CLIENT_CA_FILE", Path: d.GRPCClientCAFile},
		{Setting: "REGISTRAR_CERT_FILE", Path: d.RegistrarCertFile, KeyPath: d.RegistrarKeyFile},
		{Setting: "REGISTRAR_CA_FILE", Path: d.RegistrarCAFile},
	} {
		if file.Path != "" {
			c.Certificates = append(c.Certificates, file)
		}
	}
	if connection, err := d.Connect(); err == nil {
		c.Registrar = connection
		closing = func() { _ = connection.Close() }
	}
	return c, closing
}

// finding is the JSON form of a [doctor.Finding].
type finding struct {
	Check      string         `json:"check"`
	Verdict    doctor.Verdict `json:"verdict"`
	Found      string         `json:"found"`
	Fix        string         `json:"fix,omitempty"`
	DurationMS int64          `json:"duration_ms"`
}

var marks = map[doctor.Verdict]string{
	doctor.OK: "ok", doctor.Warning: "WARNING", doctor.Fault: "FAULT", doctor.NotChecked: "not checked",
}

func (d *doctorCommand) run(ctx context.Context, s *session) error {
	logging.Disable() // the checks report what matters
	config, closing := d.config()
	defer closing()
	findings := doctor.RunChecks(ctx, config.Checks(), d.Timeout)
	counts := map[doctor.Verdict]int{}
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	for _, f := range findings {
		counts[f.Verdict]++
		if err := s.object(finding{f.Check, f.Verdict, f.Found, f.Fix, f.Duration.Milliseconds()}); err != nil {
			return err
		}
		duration := ""
		if d.Verbose {
			duration = fmt.Sprintf(" (%v)", f.Duration.Round(time.Millisecond))
		}
		s.say("%-11s  %-*s  %s%s", marks[f.Verdict], width, f.Check, printable(f.Found), duration)
		if f.Fix != "" {
			s.say("%s  → %s", strings.Repeat(" ", 11+2+width), f.Fix)
		}
	}
	s.say("\n%d ok, %s, %s, %d not checked", counts[doctor.OK],
		count(counts[doctor.Warning], "warning"), count(counts[doctor.Fault], "fault"), counts[doctor.NotChecked])
	if n := counts[doctor.Fault]; n > 0 {
		return fmt.Errorf("doctor: %s in %d checks", count(n, "fault"), len(findings))
	}
	return nil
}
