// Package registrar is the gRPC service that internal services use: a user's
// Zoom grant goes in, a Recall credential that points at the user's own
// callback URL comes of it.
//
// The API is documented in proto/tokenprovider/registrar/v1, and for its callers
// in docs/registrar.md. A [Service] does the work: registration.go, secret.go and
// removal.go are the things that take steps, service.go and watch.go answer calls,
// and finisher.go ends what a crash or an outage has left half-way. Each step is
// recorded, so any replica can carry on. A [Reconciler] keeps Recall's view and
// ours the same.
//
// Who may call what is in access.go, and [Serve] puts the server together.
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
	"tokenprovider/internal/recall"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/store"
	"tokenprovider/internal/zoom"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// App is a Zoom app, and what Recall knows it by.
type App struct {
	Zoom     *zoom.Client
	OAuthApp string // Recall's uuid of the app
}

// Config is what the service needs. Every field without a default is required.
type Config struct {
	Store        *store.Store
	Renewer      *renewal.Renewer
	Apps         map[string]App // by the name of the Zoom app; [Service.SetApps] changes them
	Recall       *recall.Client
	CallbackBase *url.URL // public URL of the token server
	Log          *zap.Logger

	// OldBases are public URLs that the token server had before. Credentials under
	// them are ours too. May be empty.
	OldBases []*url.URL
	// Metrics is told how calls, registrations and reconciliations go. Nil: nobody is.
	Metrics prometheus.Registerer
	// Audit is told of each registration, removal and rotation of a secret, and of
	// each token handed out. Nil: Log's logger "audit".
	Audit *zap.Logger
	// LateResponseWait is how long the answer to a code is waited for from a replica that
	// may have died with it. 0: 30 s.
	LateResponseWait time.Duration
	// WorkTime bounds one registration, removal or rotation of a secret. 0: 1 minute.
	WorkTime time.Duration
	// Lock is how long a user whose replica has died is left alone. 0: 5 s.
	Lock time.Duration
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
	work  sync.WaitGroup // what goes on although its caller may have left
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
	if c.WorkTime == 0 {
		c.WorkTime = time.Minute
	}
	if c.Lock == 0 {
		c.Lock = 5 * time.Second
	}
	s := &Service{Config: c, metrics: newMetrics(c.Metrics), users: NewUsers(c.Store)}
	s.SetApps(c.Apps)
	return s
}

// SetApps changes the Zoom apps there are.
func (s *Service) SetApps(apps map[string]App) {
	s.apps.Lock()
	defer s.apps.Unlock()
	s.apps.known = maps.Clone(apps)
}

// app returns the Zoom app of a name.
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

// isOurs reports whether the token server is, or was, reached under a base.
func (s *Service) isOurs(base string) bool {
	return s.isCurrent(base) || slices.ContainsFunc(s.OldBases, func(old *url.URL) bool { return same(base, old) })
}

// isCurrent reports whether a base is the token server's present one.
func (s *Service) isCurrent(base string) bool { return same(base, s.CallbackBase) }

func same(base string, known *url.URL) bool { return base == strings.TrimRight(known.String(), "/") }

var (
	// errBusy: somebody else is working on the same user.
	errBusy = errors.New("the user is being registered or removed by another call")
	// errOvertaken: somebody else has gone on with the user, though this call had it.
	errOvertaken = fmt.Errorf("%w, which has overtaken this one", errBusy)
)

// onUser works on a user as the only one over all replicas. The work goes on
// when the caller leaves: a spent code needs its answer.
func (s *Service) onUser(ctx context.Context, id grant.ID, work func(context.Context) (grant.Grant, error)) (grant.Grant, error) {
	type result struct {
		grant grant.Grant
		err   error
	}
	done := make(chan result, 1)
	s.work.Go(func() {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.WorkTime)
		defer cancel()
		unlock, err := s.lock(ctx, detached, id)
		if err != nil {
			done <- result{err: err}
			return
		}
		g, err := func() (grant.Grant, error) {
			defer unlock() // before the caller can ask for more
			return work(detached)
		}()
		done <- result{g, err}
	})
	select {
	case r := <-done:
		return r.grant, r.err
	case <-ctx.Done():
		return grant.Grant{}, fmt.Errorf("the work goes on: %w", ctx.Err())
	}
}

// lock waits for the user's lock for as long as the caller does.
func (s *Service) lock(caller, ctx context.Context, id grant.ID) (unlock func(), err error) {
	const look = 50 * time.Millisecond
	for {
		unlock, ok, err := s.Store.LockRegistration(ctx, id, s.Lock)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-caller.Done():
			return nil, fmt.Errorf("%w: %w", errBusy, caller.Err())
		case <-ctx.Done():
			return nil, errBusy
		case <-time.After(look):
		}
	}
}

// Close waits for work whose callers have left, until ctx ends.
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
		return fmt.Errorf("waiting for registrations under way: %w", ctx.Err())
	}
}

// change changes a grant although it may have been renewed since it was read. It
// answers [errOvertaken] if what the steps here decide by has changed too: then
// this call has lost the user's lock, by a stop that was longer than the lock.
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
			now.OwnerUnverified != g.OwnerUnverified || (now.State == grant.Deleting) != (g.State == grant.Deleting) || !slices.Equal(now.Secrets, g.Secrets) {
			return grant.Grant{}, errOvertaken
		}
		g = now
	}
}
