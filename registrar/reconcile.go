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
	"tokenprovider/internal/recall"
	"tokenprovider/internal/store"
)

// FindingKind is what a reconciliation can find.
type FindingKind string

// What a reconciliation can find, and what it does about it.
const (
	// Missing: a user's credential is not at Recall. It is made again.
	Missing FindingKind = "missing"
	// Orphan: a credential is ours, and no user's. It is removed.
	Orphan FindingKind = "orphan"
	// OldBase: a user's credential has a URL under an old CALLBACK_BASE_URL. It is
	// replaced.
	OldBase FindingKind = "old_base"
	// StaleSecret: a user's credential has a URL that the token server does not
	// answer any more. It is replaced.
	StaleSecret FindingKind = "stale_secret"
	// Unhealthy: Recall calls a user's credential unhealthy, or cannot sync the
	// user's meetings. It is told in the user's reason.
	Unhealthy FindingKind = "unhealthy"
	// Healthy: Recall does not any more. The reason is taken back.
	Healthy FindingKind = "healthy"
)

// Finding is one thing that a reconciliation has found.
type Finding struct {
	Kind       FindingKind
	Grant      grant.ID
	App, User  string // of the grant; empty for an orphan
	Credential string // id at Recall
	Detail     string // for people, without secrets
}

// Reconciler keeps Recall's view and ours the same: a pass looks at every
// credential that Recall has for our Zoom apps, and at every user. It goes slowly,
// behind registrations, and touches only what is certainly ours: a credential
// that a user's record names, or whose URL has a secret that we know or lies under
// our base.
type Reconciler struct {
	Service *Service
	Recall  *recall.Client // through a gate for the background
	Log     *zap.Logger

	// Every is the time between the end of a pass and the next. 0: 1 h.
	Every time.Duration
	// Young credentials are no orphans: whoever made them may not have said so yet.
	// 0: 10 minutes.
	Young time.Duration
	// AnyNumber removes orphans, and makes missing credentials again, however many
	// they are. Otherwise a pass that finds more than 10, and more than a twentieth
	// of all, stops: rather than so many credentials, our own view may be wrong, an
	// empty Redis, or another Recall workspace.
	AnyNumber bool
}

// mostOrphans is how many orphans a pass removes; the next one sees to the rest.
const mostOrphans = 1000

// ErrTooMany means: a reconciliation has found so much amiss that it has stopped.
var ErrTooMany = errors.New("more is amiss than can be by chance: nothing is done about it")

// progress is how far a pass has come. It is kept in Redis, so that any replica
// can go on.
type progress struct {
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended,omitzero"`
	Phase   phase     `json:"phase"`
	App     string    `json:"app,omitempty"`    // phase 1: the Zoom app under way
	Cursor  string    `json:"cursor,omitempty"` // phase 1: Recall's
	After   grant.ID  `json:"after,omitempty"`  // phase 3
	Ours    int       `json:"ours"`             // credentials looked at that are ours
	Orphans []string  `json:"orphans,omitempty"`
	Users   int       `json:"users"` // looked at in phase 3
	Missing int       `json:"missing"`
	Stopped bool      `json:"stopped,omitempty"` // ended, because too much was amiss
}

type phase string

const (
	ours    phase = "credentials" // what Recall has
	orphans phase = "orphans"     // what nobody has
	missing phase = "users"       // what Recall does not have
)

// pass is one pass.
type pass struct {
	*Reconciler
	progress
	dry  bool
	tell func(Finding)
	seen map[grant.ID]bool // in a dry run: it notes nothing in Redis
}

// Run makes one pass after the other until ctx ends. Of all replicas, one does; if
// it dies, another goes on where it was.
func (r *Reconciler) Run(ctx context.Context) {
	every := r.Every
	if every == 0 {
		every = time.Hour
	}
	for {
		wait, err := r.turn(ctx, every)
		if err != nil && ctx.Err() == nil {
			r.Log.Warn("the reconciliation has to wait", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + time.Duration(rand.Int64N(int64(wait)))): //nolint:gosec // jitter is no secret
		}
	}
}

// turn makes a pass, or goes on with one, if it is time and nobody else does. It
// returns when to look again.
func (r *Reconciler) turn(ctx context.Context, every time.Duration) (time.Duration, error) {
	look := min(every, time.Minute)
	unlock, ok, err := r.Service.Store.LockReconciliation(ctx, time.Minute)
	if err != nil || !ok {
		return look, err
	}
	defer unlock()
	text, err := r.Service.Store.ReadReconciliation(ctx)
	if err != nil {
		return look, err
	}
	p := &pass{Reconciler: r, tell: r.log}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &p.progress); err != nil {
			r.Log.Error("how far the last reconciliation came cannot be read: beginning anew", zap.Error(err))
		}
	}
	r.Service.metrics.reconciled(p.progress)
	switch {
	case !p.Ended.IsZero() && time.Since(p.Ended) < every:
		return min(look, every-time.Since(p.Ended)), nil
	case !p.Ended.IsZero() || p.Phase == "":
		p.progress = progress{Began: time.Now(), Phase: ours}
	}
	err = p.run(ctx)
	r.Service.metrics.passed(ctx, err)
	defer func() { r.Service.metrics.reconciled(p.progress) }()
	if errors.Is(err, ErrTooMany) {
		r.Log.Error("the reconciliation has stopped: is this the right Redis, and the right Recall workspace?", zap.Error(err))
		p.Ended, p.Stopped = time.Now(), true
		return look, p.save(ctx)
	}
	return look, err
}

// Pass makes a whole pass by itself, and tells of each finding as it finds it. In
// a dry run it changes nothing, here or at Recall. It returns when all is looked
// at, or with the first error.
func (r *Reconciler) Pass(ctx context.Context, dry bool, tell func(Finding)) error {
	p := &pass{
		Reconciler: r, progress: progress{Began: time.Now(), Phase: ours},
		dry: dry, tell: tell, seen: map[grant.ID]bool{},
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
		case ours:
			err = p.credentials(ctx)
		case orphans:
			err = p.orphans(ctx)
		case missing:
			var done bool
			if done, err = p.users(ctx); err == nil && done {
				p.Ended = time.Now()
				p.Log.Info("reconciled with Recall", zap.Int("credentials", p.Ours), zap.Int("users", p.Users),
					zap.Duration("took", p.Ended.Sub(p.Began)), zap.Bool("dry_run", p.dry))
				return p.save(ctx)
			}
		default: // of another version
			p.progress = progress{Began: time.Now(), Phase: ours}
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
		return fmt.Errorf("keeping how far the reconciliation has come: %w", err)
	}
	return p.Service.Store.SaveReconciliation(ctx, string(text))
}

// credentials looks at the next page of what Recall has.
func (p *pass) credentials(ctx context.Context) error {
	s := p.Service
	names := s.appNames()
	if p.App == "" && len(names) > 0 {
		p.App = names[0]
	}
	app, known := s.app(p.App)
	next := ""
	if known {
		var found []recall.Credential
		var err error
		if found, next, err = p.Recall.Page(ctx, recall.Filter{OAuthApp: app.OAuthApp}, p.Cursor); err != nil {
			return err
		}
		if err := p.judge(ctx, found); err != nil {
			return err
		}
	}
	if p.Cursor = next; next != "" {
		return nil
	}
	after := slices.IndexFunc(names, func(name string) bool { return name > p.App })
	if after < 0 {
		p.App, p.Phase = "", orphans
		return nil
	}
	p.App = names[after]
	return nil
}

// judge compares credentials with the users that they should be of.
func (p *pass) judge(ctx context.Context, found []recall.Credential) error {
	s := p.Service
	var ids []grant.ID
	for _, c := range found {
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
	var seen []grant.ID
	for _, c := range found {
		base, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
		g, known := byID[address.ID]
		opens := known && address.Matches(g.Secrets, time.Now())
		switch {
		case known && g.Credential == c.ID:
			seen = append(seen, g.ID)
			if err := p.same(ctx, g, c, s.isCurrent(base), opens); err != nil {
				return err
			}
		case !ok || !opens && !s.isOurs(base): // not ours
			continue
		case known && (g.Credential == "" || g.ReplacedCredential == c.ID): // under way
		case len(p.Orphans) < mostOrphans && time.Since(c.CreatedAt) > p.young():
			p.Orphans = append(p.Orphans, c.ID)
		}
		p.Ours++
	}
	if p.dry {
		for _, id := range seen {
			p.seen[id] = true
		}
		return nil
	}
	return s.Store.MarkListed(ctx, seen)
}

func (p *pass) young() time.Duration {
	if p.Young > 0 {
		return p.Young
	}
	return 10 * time.Minute
}

// same looks at a credential that is the one its user should have.
func (p *pass) same(ctx context.Context, g grant.Grant, c recall.Credential, current, opens bool) error {
	f := Finding{Grant: g.ID, App: g.App, User: g.User, Credential: c.ID}
	switch {
	case g.State == grant.Deleting:
		return nil
	case !opens:
		f.Kind, f.Detail = StaleSecret, "the token server does not answer its URL any more"
		return p.act(f, func() error { return p.replace(ctx, f, "its callback URL is not answered any more") })
	case !current:
		f.Kind, f.Detail = OldBase, "its URL is under an old CALLBACK_BASE_URL"
		return p.act(f, func() error { return p.replace(ctx, f, "CALLBACK_BASE_URL has changed") })
	}
	health, err := p.health(ctx, c)
	if err != nil || health == g.Health {
		return err
	}
	f.Kind, f.Detail = Unhealthy, health
	if health == "" {
		f.Kind, f.Detail = Healthy, "was: "+g.Health
	}
	return p.act(f, func() error {
		_, err := p.Service.change(ctx, g, store.Change{Health: &health})
		if errors.Is(err, errOvertaken) || errors.Is(err, grant.ErrNotFound) {
			return nil // the next pass looks again
		}
		return err
	})
}

// act tells of a finding, and does something about it unless this is a dry run.
func (p *pass) act(f Finding, do func() error) error {
	p.tell(f)
	if p.dry {
		return nil
	}
	return do()
}

// health is what Recall finds wrong with a credential, "" if nothing.
func (p *pass) health(ctx context.Context, c recall.Credential) (string, error) {
	var text string
	switch {
	case c.Status == "unhealthy":
		text = "Recall calls the credential unhealthy"
	case c.MeetingSync == "failed":
		text = "Recall cannot sync the user's meetings"
	default:
		return "", nil
	}
	complaints, err := p.Recall.ListLogs(ctx, c.ID, time.Now().Add(-7*24*time.Hour))
	if err != nil {
		return "", err
	}
	if len(complaints) == 0 {
		return text, nil
	}
	last := slices.MaxFunc(complaints, func(a, b recall.LogEntry) int { return a.At.Compare(b.At) })
	return text + ": " + harmless(last.Message), nil
}

// secretive is what may be a secret in somebody else's words: a URL, or a long text
// without a space.
var secretive = regexp.MustCompile(`https?://\S+|\S{32,}`)

// harmless is what can be shown of Recall's own words.
func harmless(text string) string {
	const most = 200
	if runes := []rune(secretive.ReplaceAllString(text, "[redacted]")); len(runes) > most {
		return string(runes[:most]) + "…"
	} else {
		return string(runes)
	}
}

// replace replaces a user's credential, if it is still the one that was found.
func (p *pass) replace(ctx context.Context, f Finding, why string) error {
	return p.onUser(ctx, f.Grant, func(ctx context.Context) error {
		g, err := p.Service.Store.Get(ctx, f.Grant)
		if err != nil || g.Credential != f.Credential || g.ReplacedCredential != "" || g.State == grant.Deleting {
			return ignore(err, grant.ErrNotFound)
		}
		if g, err = p.Service.unlink(ctx, g, why); err != nil {
			return ignore(err, errOvertaken)
		}
		if _, err = p.Service.create(ctx, g); err != nil {
			_, err = p.Service.later(ctx, g.ID, err)
		}
		return err
	})
}

// onUser works on a user as the only one; not at all if somebody else does.
func (p *pass) onUser(ctx context.Context, id grant.ID, work func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.Service.WorkTime)
	defer cancel()
	unlock, ok, err := p.Service.Store.LockRegistration(ctx, id, p.Service.Lock)
	if err != nil || !ok {
		return err // the next pass looks again
	}
	defer unlock()
	if err := p.Recall.WaitForQuota(ctx); err != nil { // what work does is not for the background
		return err
	}
	return work(ctx)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// tooMany reports whether so many of all are more than can be by chance.
func (p *pass) tooMany(n, all int) bool { return !p.AnyNumber && n > 10 && n*20 > all }

// orphans removes what is ours and nobody's.
func (p *pass) orphans(ctx context.Context) error {
	if p.tooMany(len(p.Orphans), p.Ours) {
		return fmt.Errorf("%w: of %d credentials under our URL, %d are no user's", ErrTooMany, p.Ours, len(p.Orphans))
	}
	if len(p.Orphans) == 0 {
		p.Phase = missing
		return nil
	}
	id := p.Orphans[0]
	if err := p.removeOrphan(ctx, id); err != nil {
		return err
	}
	p.Orphans = p.Orphans[1:]
	return nil
}

// removeOrphan looks again, as the only one who works on its user, and removes it.
func (p *pass) removeOrphan(ctx context.Context, id string) error {
	c, err := p.Recall.Get(ctx, id)
	if err != nil {
		return ignore(err, recall.ErrNotFound)
	}
	_, address, ok := callback.ParseURL(c.CallbackURL.Reveal())
	if !ok {
		return nil
	}
	f := Finding{Kind: Orphan, Grant: address.ID, Credential: id, Detail: "no user has it"}
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
			p.tell(f)
		}
		return err
	}
	return p.onUser(ctx, address.ID, func(ctx context.Context) error {
		orphan, err := check(ctx)
		if err != nil || !orphan {
			return err
		}
		p.tell(f)
		return ignore(p.Recall.Delete(ctx, id), recall.ErrNotFound)
	})
}

// users looks at the next users, for those whose credential Recall did not list.
func (p *pass) users(ctx context.Context) (done bool, err error) {
	const page = 100
	grants, err := p.Service.Store.List(ctx, "", p.After, page)
	if err != nil {
		return false, err
	}
	for _, g := range grants {
		p.Users++
		listed := p.seen[g.ID] || !g.ListedTime.Before(p.Began)
		if _, known := p.Service.app(g.App); known && g.Credential != "" && g.State != grant.Deleting && !listed {
			if err := p.unseen(ctx, g); err != nil {
				return false, err
			}
		}
		p.After = g.ID
	}
	return len(grants) < page, nil
}

// unseen looks for a credential that was not listed: it may be newer than the list.
func (p *pass) unseen(ctx context.Context, g grant.Grant) error {
	_, err := p.Recall.Get(ctx, g.Credential)
	if !errors.Is(err, recall.ErrNotFound) {
		return err
	}
	if p.Missing++; p.tooMany(p.Missing, p.Users) {
		return fmt.Errorf("%w: of the first %d users, %d have no credential at Recall", ErrTooMany, p.Users, p.Missing)
	}
	f := Finding{Kind: Missing, Grant: g.ID, App: g.App, User: g.User, Credential: g.Credential, Detail: "Recall does not have it"}
	return p.act(f, func() error {
		return p.onUser(ctx, g.ID, func(ctx context.Context) error {
			now, err := p.Service.Store.Get(ctx, g.ID)
			if err != nil || now.Credential != g.Credential || now.State == grant.Deleting {
				return ignore(err, grant.ErrNotFound)
			}
			none, why := "", "Recall has lost its credential"
			now, err = p.Service.change(ctx, now, store.Change{Credential: &none, Health: &none, Reason: &why, Secrets: &[]grant.CallbackSecret{}})
			if err != nil {
				return ignore(err, errOvertaken)
			}
			if _, err = p.Service.link(ctx, now); err != nil {
				_, err = p.Service.later(ctx, g.ID, err)
			}
			return err
		})
	})
}
