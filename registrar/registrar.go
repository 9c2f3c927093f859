// Package registrar is the gRPC service that registers users: it takes a user's
// Zoom grant, and gives the user a credential at a bot vendor that points at the
// user's own callback URL.
//
// The API is documented in proto/tokenprovider/registrar/v1, and for its callers in
// docs/registrar.md. A [Service] implements it:
//
//   - service.go: the calls. users.go and watch.go: reading users. status.go: errors.
//   - server.go, access.go, tls.go: the gRPC server, and who may call what.
//   - consent.go, registration.go, credential.go, secret.go, removal.go: the steps of
//     a registration, and of a removal.
//   - unfinished.go: continues what a crash or an outage has interrupted.
//   - reconcile.go: a [Reconciler] compares the vendor's credentials with the users.
//
// # A registration
//
// A registration is a sequence of steps. Each is stored before the next begins, so
// any replica can continue it. A replica works on a user only while it holds the
// user's lock. Every change names the version of the record that it was made from,
// so a replica that has lost the lock changes nothing.
//
//	consent claimed   a claim in Redis, for LateResponseWait; the code may be spent
//	  → journaled     Zoom's response is on this replica's disk
//	journaled         → stored, by this replica; or by its journal after a restart
//	stored            the grant is in Redis (State pending), and in the work index
//	  → identified    Zoom has reported the owner of the grant
//	identified        → secret stored: the URL works before the vendor calls it
//	secret stored     a credential may exist at the vendor, without its id here
//	  → active        created, or found by its URL; its id is stored
//	active            final, until the secret is rotated or the user removed
//	deleting          credential, then grant at Zoom (if requested), then record
//
// A crash leaves a state as it is:
//
//   - Consent claimed: the next call with the same code waits for LateResponseWait,
//     in case the response is in a journal, and then tries the code once more.
//   - Journaled: only the replica with the journal can continue.
//   - Stored and later: any replica continues from the work index, after the lock of
//     the dead replica has expired. In state "secret stored" it first looks for the
//     credential at the vendor, and creates one only if there is none.
//   - Deleting: any replica continues. Every step can be repeated.
//
// A step that fails is retried with backoff ([Service.postpone]); the user's reason
// says why. Secret rotation returns an active user to "secret stored", and keeps the
// id of the old credential until it is replaced.
package registrar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// App is a Zoom app.
type App struct {
	Zoom     *zoom.Client
	OAuthApp string // the vendor's id of the app
}

// Store keeps grants. [store.Store] implements it. Each part is declared beside the
// code that uses it.
type Store interface {
	UserStore
	LockStore
	GrantStore
	ConsentStore
	WorkStore
	ReconciliationStore
}

// LockStore locks users.
type LockStore interface {
	// LockRegistration locks a user against other registrations and removals, on all
	// replicas. ok is false if the user is locked. The lock is extended until unlock is
	// called, and expires ttl after the process dies. It only saves work: the version
	// in every change keeps records right.
	LockRegistration(ctx context.Context, id grant.ID, ttl time.Duration) (unlock func(), ok bool, err error)
}

// GrantStore reads and changes one grant. Each change is atomic.
type GrantStore interface {
	// Change changes a grant that is still at version, and returns it. It returns
	// [grant.ErrConflict] if the version differs. After a lost reply, read the grant
	// before trying again.
	Change(ctx context.Context, id grant.ID, version int64, c store.Change) (grant.Grant, error)
	// Remove removes a grant that is still at version, with [grant.ErrConflict] as for
	// Change. Later claims of its consent return the outcome.
	Remove(ctx context.Context, id grant.ID, version int64, outcome store.ConsentOutcome) error
	// ReadServingRecord returns the access token, to call Zoom with.
	ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error)
	// ReadRefreshToken returns the refresh token, to revoke it, never to refresh.
	ReadRefreshToken(ctx context.Context, id grant.ID) (secret.Text, error)
}

// Config configures a [Service]. Every field without a default is required.
type Config struct {
	Store        Store
	Renewer      *renewal.Renewer
	Apps         map[string]App // by the name of the Zoom app; [Service.SetApps] replaces them
	Vendor       Vendor
	CallbackBase *url.URL // public URL of the token server
	Log          *zap.Logger

	// OldBases are earlier public URLs of the token server. Credentials under them are
	// ours too. May be empty.
	OldBases []*url.URL
	// Metrics registers the metrics. Nil: they are not exported.
	Metrics prometheus.Registerer
	// Audit logs registrations, removals, rotations of secrets, and issued tokens. Nil:
	// Log's logger "audit".
	Audit *zap.Logger
	// LateResponseWait is the wait for Zoom's response to a code from a replica that
	// has claimed the code and may have died. 0: 30 s.
	LateResponseWait time.Duration
	// WorkTimeout limits one registration, removal or rotation of a secret. 0: 1 minute.
	WorkTimeout time.Duration
	// LockTTL is the time after which a dead replica's lock on a user expires. 0: 5 s.
	LockTTL time.Duration
}

// Service implements the RegistrarService. It is safe for concurrent use.
type Service struct {
	registrarv1.UnimplementedRegistrarServiceServer
	Config
	metrics *metrics

	apps struct {
		sync.RWMutex
		known map[string]App
	}
	work  sync.WaitGroup // work that continues after its caller has left
	users *Users
}

// New returns the service. It does no I/O.
func New(c Config) *Service {
	if c.Audit == nil {
		c.Audit = c.Log.Named("audit")
	}
	if c.LateResponseWait == 0 {
		c.LateResponseWait = 30 * time.Second
	}
	if c.WorkTimeout == 0 {
		c.WorkTimeout = time.Minute
	}
	if c.LockTTL == 0 {
		c.LockTTL = 5 * time.Second
	}
	s := &Service{Config: c, metrics: newMetrics(c.Metrics), users: NewUsers(c.Store)}
	s.SetApps(c.Apps)
	return s
}

// SetApps replaces the Zoom apps.
func (s *Service) SetApps(apps map[string]App) {
	s.apps.Lock()
	defer s.apps.Unlock()
	s.apps.known = maps.Clone(apps)
}

// app returns the Zoom app with a name.
func (s *Service) app(name string) (App, bool) {
	s.apps.RLock()
	defer s.apps.RUnlock()
	found, known := s.apps.known[name]
	return found, known
}

// appNames returns the names of the Zoom apps, in order.
func (s *Service) appNames() []string {
	s.apps.RLock()
	defer s.apps.RUnlock()
	return slices.Sorted(maps.Keys(s.apps.known))
}

// isOurs reports whether a base is a present or earlier URL of the token server.
func (s *Service) isOurs(base string) bool {
	return s.isCurrent(base) || slices.ContainsFunc(s.OldBases, func(old *url.URL) bool { return sameURL(base, old) })
}

// isCurrent reports whether a base is the token server's present URL.
func (s *Service) isCurrent(base string) bool { return sameURL(base, s.CallbackBase) }

func sameURL(base string, known *url.URL) bool { return base == strings.TrimRight(known.String(), "/") }

var (
	// errBusy means that another call or replica holds the user's lock.
	errBusy = errors.New("the user is being registered or removed by another call")
	// errLostLock means that another replica has changed the user under this one's lock.
	errLostLock = fmt.Errorf("%w, which has continued in place of this one", errBusy)
)

// onUser runs work with the user's lock. The work continues when the caller leaves:
// once a code is spent, its grant has to be stored.
func (s *Service) onUser(ctx context.Context, id grant.ID, work func(context.Context) (grant.Grant, error)) (grant.Grant, error) {
	type result struct {
		grant grant.Grant
		err   error
	}
	done := make(chan result, 1)
	s.work.Go(func() {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.WorkTimeout)
		defer cancel()
		unlock, err := s.lock(ctx, detached, id)
		if err != nil {
			done <- result{err: err}
			return
		}
		g, err := func() (grant.Grant, error) {
			defer unlock() // before the caller gets the result
			return work(detached)
		}()
		done <- result{g, err}
	})
	select {
	case r := <-done:
		return r.grant, r.err
	case <-ctx.Done():
		return grant.Grant{}, fmt.Errorf("work continues without its caller: %w", ctx.Err())
	}
}

// lock waits for the user's lock until the caller leaves or ctx ends.
func (s *Service) lock(caller, ctx context.Context, id grant.ID) (unlock func(), err error) {
	const poll = 50 * time.Millisecond
	for {
		unlock, ok, err := s.Store.LockRegistration(ctx, id, s.LockTTL)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-caller.Done():
			return nil, fmt.Errorf("%w: %w", errBusy, caller.Err())
		case <-ctx.Done():
			return nil, errBusy
		case <-time.After(poll):
		}
	}
}

// Close waits for work that continues after its callers have left, until ctx ends.
func (s *Service) Close(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		s.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for unfinished registrations: %w", ctx.Err())
	}
}

// change changes a grant, even if it was renewed since it was read. It returns
// [errLostLock] if a field that decides the steps here has changed too: then another
// replica has taken the lock, because this process was stopped for too long.
func (s *Service) change(ctx context.Context, g grant.Grant, c store.Change) (grant.Grant, error) {
	for {
		changed, err := s.Store.Change(ctx, g.ID, g.Version, c)
		if !errors.Is(err, grant.ErrConflict) {
			return changed, err
		}
		now, err := s.Store.Get(ctx, g.ID)
		if err != nil {
			return grant.Grant{}, err
		}
		if now.Consent != g.Consent || now.Credential != g.Credential || now.ReplacedCredential != g.ReplacedCredential || now.ZoomUser != g.ZoomUser ||
			now.OwnerUnverified != g.OwnerUnverified || (now.State == grant.StateDeleting) != (g.State == grant.StateDeleting) || !slices.Equal(now.Secrets, g.Secrets) {
			return grant.Grant{}, errLostLock
		}
		g = now
	}
}
