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
	DryRun    bool `help:"Only tell; change nothing, here or at Recall."`
	AnyNumber bool `help:"Do it however much is amiss. Otherwise it stops where that may rather be the wrong Redis or workspace."`
	confirmed

	app.Records
	config.Zoom
	config.Recall
}

// Help implements [kong.HelpProvider].
func (*reconcile) Help() string {
	return `What the registrar does every RECONCILE_INTERVAL, now, with each finding told: credentials that are missing are made again, those of ours that are nobody's are removed, old URLs are replaced. It keeps within Recall's limits, which it shares with the registrars (60 pages a minute), and begins from the start. It needs the registrar's settings.

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
		if err := r.confirm(ctx, s, "Credentials at Recall are created, replaced and removed as the grants in this Redis say. --dry-run tells which."); err != nil {
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
			return errors.New("reconcile: a registrar is reconciling at this moment; its log tells what it finds")
		}
		defer unlock()
	}
	client, log := &http.Client{Timeout: 20 * time.Second}, zap.NewNop()
	gate := recallvendor.Gate{Quota: grants, PerMinute: r.RecallRateLimit, Log: log, MaxWait: 2 * time.Minute}
	background := gate
	background.MaxWait, background.Background = 10*time.Minute, true
	recallClient := recall.New(recall.Config{APIURL: r.RecallAPIURL, APIKey: r.RecallAPIKey, HTTP: client, Gate: &gate})
	// It renews nothing: an answer of Zoom's would need a journal.
	rotator := renewal.New(renewal.Config{Store: grants, Journal: noJournal{}, Log: log, Metrics: prometheus.NewRegistry()})
	if err := rotator.Close(ctx); err != nil {
		return err
	}
	apps := map[string]registrar.App{}
	for _, one := range r.Apps(config.App{OAuthApp: r.RecallOAuthAppID}, "").List() {
		apps[one.Name] = registrar.App{Zoom: app.ZoomClient(one, client, nil), OAuthApp: one.OAuthApp}
	}
	service := registrar.New(registrar.Config{
		Store: grants, Renewer: rotator, Apps: apps, Vendor: recallvendor.New(recallClient), Log: log,
		CallbackBase: r.CallbackBaseURL, OldBases: r.OldBases(),
	})
	reconciler := &registrar.Reconciler{
		Service: service, Vendor: recallvendor.New(recallClient.WithGate(&background)), Log: log, AnyNumber: r.AnyNumber,
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
			err = fmt.Errorf("%w. If it is right, say --any-number", err)
		}
		return fmt.Errorf("reconcile: %w", err)
	}
	n := 0
	for _, found := range counts {
		n += found
	}
	did := "done"
	if r.DryRun {
		did = "nothing was changed"
	}
	s.say("%s; %s", count(n, "finding"), did)
	return printing
}

// noJournal is the journal of a rotator that never has an answer to keep.
type noJournal struct{ renewal.Journal }

func (noJournal) Entries() []journal.Entry { return nil }
