package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/renewal"
	"tokenprovider/registrar"
)

type reconcile struct {
	DryRun    bool `help:"Report of the findings, without a change here or at Recall."`
	AnyNumber bool `help:"No limit on the number of discrepancies. By default, too many stop it, because Redis or the workspace may be the wrong one."`
	confirmed

	app.Records
	config.Zoom
	config.Recall
}

// Help implements [kong.HelpProvider].
func (*reconcile) Help() string {
	return `Does now, from the beginning, what the registrar does every RECONCILE_INTERVAL, and reports each finding: missing credentials are created again, credentials of ours without a user are removed, old URLs are replaced. It keeps within Recall's limits, which it shares with the registrars (60 pages a minute). It needs the registrar's settings.

Examples:

  tokenctl reconcile --dry-run

  tokenctl reconcile --dry-run -o json | jq -r .kind | sort | uniq -c`
}

// Check implements [config.Checker].
func (r *reconcile) Check(fault func(setting, text string)) {
	r.Records.Check(fault)
	r.Zoom.Check(fault)
	r.Recall.Check(fault)
	r.CheckApp(&r.Zoom, fault)
}

// reconciled is a finding in JSON.
type reconciled struct {
	Kind       registrar.FindingKind `json:"kind"`
	User       string                `json:"user_id,omitempty"`
	App        string                `json:"zoom_app,omitempty"`
	Credential string                `json:"recall_credential_id"`
	Detail     string                `json:"detail"`
	Done       bool                  `json:"done"`
}

func (r *reconcile) run(ctx context.Context, s *session) error {
	if !r.DryRun {
		if err := r.confirm(ctx, s, "Credentials at Recall are created, replaced and removed to match the grants in this Redis. --dry-run lists them."); err != nil {
			return err
		}
	}
	grants, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if !r.DryRun {
		unlock, ok, err := grants.LockReconciliation(ctx, time.Minute)
		switch {
		case err != nil:
			return err
		case !ok:
			return errors.New("reconcile: a registrar is reconciling now; see its log for the findings")
		}
		defer unlock()
	}
	client, log := &http.Client{Timeout: 20 * time.Second}, zap.NewNop()
	gate := recallvendor.Gate{Quota: grants, PerMinute: r.RecallRateLimit, Log: log, MaxWait: 2 * time.Minute}
	background := gate
	background.MaxWait, background.Background = 10*time.Minute, true
	recallClient := recall.New(recall.Config{APIURL: r.RecallAPIURL, APIKey: r.RecallAPIKey, HTTP: client, Gate: &gate})
	// The renewer is closed: renewals would need a journal.
	renewer := renewal.New(renewal.Config{Store: grants, Journal: noJournal{}, Log: log, Metrics: prometheus.NewRegistry()})
	if err := renewer.Close(ctx); err != nil {
		return err
	}
	apps := map[string]registrar.App{}
	for _, one := range r.Apps(config.App{OAuthApp: r.RecallOAuthAppID}, "").List() {
		apps[one.Name] = registrar.App{Zoom: app.ZoomClient(one, client, nil), OAuthApp: one.OAuthApp}
	}
	service := registrar.New(registrar.Config{
		Store: grants, Renewer: renewer, Apps: apps, Vendor: recallvendor.New(recallClient), Log: log,
		CallbackBase: r.CallbackBaseURL, OldBases: r.OldBases(),
	})
	reconciler := &registrar.Reconciler{
		Service: service, Vendor: recallvendor.New(recallClient.WithGate(&background)), Log: log, NoDiscrepancyLimit: r.AnyNumber,
	}
	counts := map[registrar.FindingKind]int{}
	var printing error
	err = reconciler.Pass(ctx, r.DryRun, func(f registrar.Finding) {
		counts[f.Kind]++
		printing = orElse(printing, s.object(reconciled{f.Kind, f.User, f.App, f.Credential, f.Detail, !r.DryRun}))
		s.say("%-12s  %s  %s  %s", f.Kind, printable(f.Credential), printable(f.User), printable(f.Detail))
	})
	if err != nil {
		if errors.Is(err, registrar.ErrTooMany) {
			err = fmt.Errorf("%w. If this is intended, use --any-number", err)
		}
		return fmt.Errorf("reconcile: %w", err)
	}
	n := 0
	for _, found := range counts {
		n += found
	}
	result := "changes made"
	if r.DryRun {
		result = "no changes made"
	}
	s.say("%s; %s", count(n, "finding"), result)
	return printing
}

// noJournal is the journal of a renewer that renews nothing.
type noJournal struct{ renewal.Journal }

func (noJournal) Entries() []journal.Entry { return nil }
