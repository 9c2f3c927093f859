package registrar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// FindingKind is what a reconciliation can find.
type FindingKind string

// The kinds of findings, and what follows.
const (
	// FindingMissing: a user's credential is not at the vendor. It is created again.
	FindingMissing FindingKind = "missing"
	// FindingOrphan: a credential is ours, and no user has it. It is deleted.
	FindingOrphan FindingKind = "orphan"
	// FindingOldBase: a user's credential has a URL under an old CALLBACK_BASE_URL. It is
	// replaced.
	FindingOldBase FindingKind = "old_base"
	// FindingStaleSecret: a user's credential has a URL for which the token server returns
	// 404. It is replaced.
	FindingStaleSecret FindingKind = "stale_secret"
	// FindingUnhealthy: the vendor reports a defect of a user's credential. The user's reason
	// says which.
	FindingUnhealthy FindingKind = "unhealthy"
	// FindingHealthy: the vendor no longer reports a defect. The reason is removed.
	FindingHealthy FindingKind = "healthy"
)

// Finding is a difference between the vendor's credentials and the users.
type Finding struct {
	Kind       FindingKind
	Grant      grant.ID
	App, User  string // of the grant; empty for an orphan
	Credential string // id at the vendor
	Detail     string // for people, without secrets
}

// ReconciliationStore keeps the progress of a reconciliation, for all replicas.
type ReconciliationStore interface {
	// LockReconciliation locks reconciliations against each other; see
	// [LockStore.LockRegistration].
	LockReconciliation(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error)
	// ReadReconciliation returns the last saved progress, "" if there is none.
	ReadReconciliation(ctx context.Context) (progress string, err error)
	// SaveReconciliation replaces the progress. It may be repeated.
	SaveReconciliation(ctx context.Context, progress string) error
	// MarkListed stores that the vendor has these grants' credentials, with the time by
	// Redis's clock. It may be repeated.
	MarkListed(ctx context.Context, ids []grant.ID) error
}

// Reconciler compares the vendor's credentials with the users, and fixes what
// differs. A pass looks at every credential of our Zoom apps and at every user. It
// leaves quota to registrations. It changes only what is certainly ours: a credential
// that a user's record names, or whose URL has a known secret or is under our base.
type Reconciler struct {
	Service *Service
	Vendor  Vendor // with limits for background work
	Log     *zap.Logger

	// Interval is the interval between the end of a pass and the next. 0: 1 h.
	Interval time.Duration
	// MinOrphanAge is the age below which a credential is no orphan: its id may not be stored
	// yet. 0: 10 minutes.
	MinOrphanAge time.Duration
	// NoDiscrepancyLimit removes the limit on orphans and missing credentials. Otherwise a pass
	// stops at more than 10 and more than a twentieth of all: it is more likely that
	// Redis is empty, or that this is another workspace at the vendor.
	NoDiscrepancyLimit bool
}

// maxOrphans is the number of orphans that a pass deletes. The next pass continues.
const maxOrphans = 1000

// ErrTooMany means that a reconciliation has found too many discrepancies.
var ErrTooMany = errors.New("too many discrepancies; no changes made")

// progress is the progress of a pass. It is stored in Redis, so any replica can
// continue the pass.
type progress struct {
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended,omitzero"`
	Phase   phase     `json:"phase"`
	App     string    `json:"app,omitempty"`    // phase 1: the current Zoom app
	Cursor  string    `json:"cursor,omitempty"` // phase 1: the vendor's
	After   grant.ID  `json:"after,omitempty"`  // phase 3
	Ours    int       `json:"ours"`             // credentials that are ours, so far
	Orphans []string  `json:"orphans,omitempty"`
	Users   int       `json:"users"` // compared in phase 3, so far
	Missing int       `json:"missing"`
	Stopped bool      `json:"stopped,omitempty"` // ended with ErrTooMany
}

type phase string

const (
	phaseCredentials phase = "credentials" // compare the vendor's credentials with their users
	phaseOrphans     phase = "orphans"     // delete credentials without a user
	phaseUsers       phase = "users"       // find users whose credential was not listed
)

// pass is one pass.
type pass struct {
	*Reconciler
	progress
	dry    bool
	report func(Finding)
	listed map[grant.ID]bool // in a dry run, which stores nothing in Redis
}

// Run makes one pass after the other until ctx ends. One replica works at a time; if
// it dies, another continues the pass.
func (r *Reconciler) Run(ctx context.Context) {
	every := r.Interval
	if every == 0 {
		every = time.Hour
	}
	for {
		wait, err := r.turn(ctx, every)
		if err != nil && ctx.Err() == nil {
			r.Log.Warn("reconciliation interrupted; retry scheduled", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + time.Duration(rand.Int64N(int64(wait)))): //nolint:gosec // jitter is no secret
		}
	}
}

// turn makes or continues a pass, if one is due and no other replica does. It returns
// the wait until the next turn.
func (r *Reconciler) turn(ctx context.Context, every time.Duration) (time.Duration, error) {
	poll := min(every, time.Minute)
	unlock, ok, err := r.Service.Store.LockReconciliation(ctx, time.Minute)
	if err != nil || !ok {
		return poll, err
	}
	defer unlock()
	text, err := r.Service.Store.ReadReconciliation(ctx)
	if err != nil {
		return poll, err
	}
	p := &pass{Reconciler: r, report: r.log}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &p.progress); err != nil {
			r.Log.Error("progress of the last reconciliation is unreadable; starting over", zap.Error(err))
		}
	}
	r.Service.metrics.setLatest(p.progress)
	switch {
	case !p.Ended.IsZero() && time.Since(p.Ended) < every:
		return min(poll, every-time.Since(p.Ended)), nil
	case !p.Ended.IsZero() || p.Phase == "":
		p.progress = progress{Began: time.Now(), Phase: phaseCredentials}
	}
	err = p.run(ctx)
	r.Service.metrics.observeTurn(ctx, err)
	defer func() { r.Service.metrics.setLatest(p.progress) }()
	if errors.Is(err, ErrTooMany) {
		r.Log.Error("reconciliation stopped; Redis or the Recall workspace may be the wrong one", zap.Error(err))
		p.Ended, p.Stopped = time.Now(), true
		return poll, p.save(ctx)
	}
	return poll, err
}

// Pass makes a whole pass and reports each finding at once. In a dry run it changes
// nothing, in Redis or at the vendor. It returns the first error.
func (r *Reconciler) Pass(ctx context.Context, dry bool, report func(Finding)) error {
	p := &pass{
		Reconciler: r, progress: progress{Began: time.Now(), Phase: phaseCredentials},
		dry: dry, report: report, listed: map[grant.ID]bool{},
	}
	return p.run(ctx)
}

func (r *Reconciler) log(f Finding) {
	r.Service.metrics.findings.WithLabelValues(string(f.Kind)).Inc()
	r.Log.Info("reconciled", zap.String("kind", string(f.Kind)), zap.String("grant", string(f.Grant)),
		zap.String("credential", f.Credential), zap.String("detail", f.Detail))
}

func (p *pass) run(ctx context.Context) error {
	for {
		var err error
		switch p.Phase {
		case phaseCredentials:
			err = p.credentials(ctx)
		case phaseOrphans:
			err = p.orphans(ctx)
		case phaseUsers:
			var done bool
			if done, err = p.users(ctx); err == nil && done {
				p.Ended = time.Now()
				p.Log.Info("reconciled with Recall", zap.Int("credentials", p.Ours), zap.Int("users", p.Users),
					zap.Duration("took", p.Ended.Sub(p.Began)), zap.Bool("dry_run", p.dry))
				return p.save(ctx)
			}
		default: // of another version
			p.progress = progress{Began: time.Now(), Phase: phaseCredentials}
		}
		if err == nil {
			err = p.save(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (p *pass) save(ctx context.Context) error {
	if p.dry {
		return nil
	}
	text, err := json.Marshal(p.progress)
	if err != nil {
		return fmt.Errorf("encoding the progress of the reconciliation: %w", err)
	}
	return p.Service.Store.SaveReconciliation(ctx, string(text))
}

// credentials compares the next page of the vendor's credentials.
func (p *pass) credentials(ctx context.Context) error {
	s := p.Service
	names := s.appNames()
	if p.App == "" && len(names) > 0 {
		p.App = names[0]
	}
	app, known := s.app(p.App)
	next := ""
	if known {
		var page []Credential
		var err error
		if page, next, err = p.Vendor.List(ctx, CredentialFilter{App: app.OAuthApp}, p.Cursor); err != nil {
			return err
		}
		if err := p.compare(ctx, page); err != nil {
			return err
		}
	}
	if p.Cursor = next; next != "" {
		return nil
	}
	after := slices.IndexFunc(names, func(name string) bool { return name > p.App })
	if after < 0 {
		p.App, p.Phase = "", phaseOrphans
		return nil
	}
	p.App = names[after]
	return nil
}

// compare compares credentials with the users that their URLs name.
func (p *pass) compare(ctx context.Context, page []Credential) error {
	s := p.Service
	var ids []grant.ID
	for _, c := range page {
		if _, address, ok := callback.ParseURL(c.CallbackURL.Reveal()); ok {
			ids = append(ids, address.ID)
		}
	}
	grants, err := s.Store.ByID(ctx, ids)
	if err != nil {
		return err
	}
	byID := make(map[grant.ID]grant.Grant, len(grants))
	for _, g := range grants {
		byID[g.ID] = g
	}
	var listed []grant.ID
	for _, c := range page {
		base, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
		g, known := byID[address.ID]
		works := known && address.Matches(g.Secrets, time.Now())
		switch {
		case known && g.Credential == c.ID:
			listed = append(listed, g.ID)
			if err := p.check(ctx, g, c, s.isCurrent(base), works); err != nil {
				return err
			}
		case !ok || !works && !s.isOurs(base): // not ours
			continue
		case known && (g.Credential == "" || g.ReplacedCredential == c.ID): // a registration continues with it
		case len(p.Orphans) < maxOrphans && time.Since(c.Created) > p.young():
			p.Orphans = append(p.Orphans, c.ID)
		}
		p.Ours++
	}
	if p.dry {
		for _, id := range listed {
			p.listed[id] = true
		}
		return nil
	}
	return s.Store.MarkListed(ctx, listed)
}

func (p *pass) young() time.Duration {
	if p.MinOrphanAge > 0 {
		return p.MinOrphanAge
	}
	return 10 * time.Minute
}

// check checks the credential that a user's record names.
func (p *pass) check(ctx context.Context, g grant.Grant, c Credential, current, works bool) error {
	f := Finding{Grant: g.ID, App: g.App, User: g.User, Credential: c.ID}
	switch {
	case g.State == grant.StateDeleting:
		return nil
	case !works:
		f.Kind, f.Detail = FindingStaleSecret, "the token server returns 404 for its URL"
		return p.act(f, func() error { return p.replace(ctx, f, "its callback URL no longer works") })
	case !current:
		f.Kind, f.Detail = FindingOldBase, "its URL is under an old CALLBACK_BASE_URL"
		return p.act(f, func() error { return p.replace(ctx, f, "CALLBACK_BASE_URL has changed") })
	}
	health, err := p.health(ctx, c)
	if err != nil {
		return err
	}
	var change store.Change
	if !setReport(&change, g, c, health) {
		return nil
	}
	save := func() error {
		_, err := p.Service.change(ctx, g, change)
		if errors.Is(err, errLostLock) || errors.Is(err, grant.ErrNotFound) {
			return nil // left to the next pass
		}
		return err
	}
	switch {
	case health == g.Health && p.dry:
		return nil
	case health == g.Health: // another part of the report
		return save()
	case health == "":
		f.Kind, f.Detail = FindingHealthy, "was: "+g.Health
	default:
		f.Kind, f.Detail = FindingUnhealthy, health
	}
	return p.act(f, save)
}

// act reports a finding, and calls do unless this is a dry run.
func (p *pass) act(f Finding, do func() error) error {
	p.report(f)
	if p.dry {
		return nil
	}
	return do()
}

// health returns a credential's defect and the vendor's last problem with it, for
// people. It returns "" if there is no defect.
func (p *pass) health(ctx context.Context, c Credential) (string, error) {
	if c.Defect == "" {
		return "", nil
	}
	problems, err := p.Vendor.ListProblems(ctx, c.ID, time.Now().Add(-7*24*time.Hour))
	if err != nil {
		return "", err
	}
	if len(problems) == 0 {
		return c.Defect, nil
	}
	last := slices.MaxFunc(problems, func(a, b Problem) int { return a.Time.Compare(b.Time) })
	return c.Defect + ": " + redact(last.Message), nil
}

// possibleSecret matches what may be a secret: a URL, or a long text without a space.
var possibleSecret = regexp.MustCompile(`https?://\S+|\S{32,}`)

// redact returns a vendor's text without possible secrets, shortened.
func redact(text string) string {
	const maxLength = 200
	if runes := []rune(possibleSecret.ReplaceAllString(text, "[redacted]")); len(runes) > maxLength {
		return string(runes[:maxLength]) + "…"
	} else {
		return string(runes)
	}
}

// replace replaces a user's credential, if the user still has it.
func (p *pass) replace(ctx context.Context, f Finding, why string) error {
	return p.onUser(ctx, f.Grant, func(ctx context.Context) error {
		g, err := p.Service.Store.Get(ctx, f.Grant)
		if err != nil || g.Credential != f.Credential || g.ReplacedCredential != "" || g.State == grant.StateDeleting {
			return ignore(err, grant.ErrNotFound)
		}
		if g, err = p.Service.markReplaced(ctx, g, why); err != nil {
			return ignore(err, errLostLock)
		}
		if _, err = p.Service.createCredential(ctx, g); err != nil {
			_, err = p.Service.postpone(ctx, g.ID, err)
		}
		return err
	})
}

// onUser runs work with the user's lock, unless the user is locked.
func (p *pass) onUser(ctx context.Context, id grant.ID, work func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.Service.WorkTimeout)
	defer cancel()
	unlock, ok, err := p.Service.Store.LockRegistration(ctx, id, p.Service.LockTTL)
	if err != nil || !ok {
		return err // left to the next pass
	}
	defer unlock()
	if err := p.Vendor.WaitForQuota(ctx); err != nil { // work uses the quota of registrations
		return err
	}
	return work(ctx)
}

// tooMany reports whether n of all are too many discrepancies.
func (p *pass) tooMany(n, all int) bool { return !p.NoDiscrepancyLimit && n > 10 && n*20 > all }

// orphans deletes the next of our credentials that has no user.
func (p *pass) orphans(ctx context.Context) error {
	if p.tooMany(len(p.Orphans), p.Ours) {
		return fmt.Errorf("%w: of %d credentials under our URL, %d have no user", ErrTooMany, p.Ours, len(p.Orphans))
	}
	if len(p.Orphans) == 0 {
		p.Phase = phaseUsers
		return nil
	}
	id := p.Orphans[0]
	if err := p.deleteOrphan(ctx, id); err != nil {
		return err
	}
	p.Orphans = p.Orphans[1:]
	return nil
}

// deleteOrphan deletes a credential that still has no user, with that user's lock.
func (p *pass) deleteOrphan(ctx context.Context, id string) error {
	c, err := p.Vendor.Get(ctx, id)
	if err != nil {
		return ignore(err, ErrNoCredential)
	}
	_, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
	if !ok {
		return nil
	}
	f := Finding{Kind: FindingOrphan, Grant: address.ID, Credential: id, Detail: "no user has it"}
	check := func(ctx context.Context) (bool, error) {
		g, err := p.Service.Store.Get(ctx, address.ID)
		if errors.Is(err, grant.ErrNotFound) {
			return true, nil
		}
		return err == nil && g.Credential != "" && g.Credential != id && g.ReplacedCredential != id, err
	}
	if p.dry {
		orphan, err := check(ctx)
		if err == nil && orphan {
			p.report(f)
		}
		return err
	}
	return p.onUser(ctx, address.ID, func(ctx context.Context) error {
		orphan, err := check(ctx)
		if err != nil || !orphan {
			return err
		}
		p.report(f)
		return deleteCredential(ctx, p.Vendor, id)
	})
}

// users checks the next page of users for credentials that were not listed.
func (p *pass) users(ctx context.Context) (done bool, err error) {
	const page = 100
	grants, err := p.Service.Store.List(ctx, "", p.After, page)
	if err != nil {
		return false, err
	}
	for _, g := range grants {
		p.Users++
		listed := p.listed[g.ID] || !g.ListedTime.Before(p.Began)
		if _, known := p.Service.app(g.App); known && g.Credential != "" && g.State != grant.StateDeleting && !listed {
			if err := p.checkUnlisted(ctx, g); err != nil {
				return false, err
			}
		}
		p.After = g.ID
	}
	return len(grants) < page, nil
}

// checkUnlisted checks a credential that was not listed. It may be newer than the list.
func (p *pass) checkUnlisted(ctx context.Context, g grant.Grant) error {
	_, err := p.Vendor.Get(ctx, g.Credential)
	if !errors.Is(err, ErrNoCredential) {
		return err
	}
	if p.Missing++; p.tooMany(p.Missing, p.Users) {
		return fmt.Errorf("%w: of the first %d users, %d have no credential at Recall", ErrTooMany, p.Users, p.Missing)
	}
	f := Finding{Kind: FindingMissing, Grant: g.ID, App: g.App, User: g.User, Credential: g.Credential, Detail: "Recall does not have it"}
	return p.act(f, func() error {
		return p.onUser(ctx, g.ID, func(ctx context.Context) error {
			now, err := p.Service.Store.Get(ctx, g.ID)
			if err != nil || now.Credential != g.Credential || now.State == grant.StateDeleting {
				return ignore(err, grant.ErrNotFound)
			}
			none, why := "", "its credential is missing at Recall"
			now, err = p.Service.change(ctx, now, store.Change{Credential: &none, Reason: &why, Secrets: &[]grant.CallbackSecret{}})
			if err != nil {
				return ignore(err, errLostLock)
			}
			if _, err = p.Service.link(ctx, now); err != nil {
				_, err = p.Service.postpone(ctx, g.ID, err)
			}
			return err
		})
	})
}
