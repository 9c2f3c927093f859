package registrar_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/renewal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/registrar"
)

// replica is a registrar that can die: from then on, nothing that it sends arrives.
type replica struct {
	registrarv1.RegistrarServiceClient
	life    *life
	store   *store.Store
	rotator *renewal.Renewer
	service *registrar.Service
	recall  *recall.Client
	folder  string
	stop    func()
	// dial connects another client, until the test ends.
	dial func(credentials.TransportCredentials) registrarv1.RegistrarServiceClient
}

type replicaOptions struct {
	folder     string // of the journal that another has left; empty: a new one
	lateAnswer time.Duration
	workTime   time.Duration
	apps       []string // empty: "default" alone
	gate       recall.Gate
	access     *registrar.Access
	server     []grpc.ServerOption
	audit      *zap.Logger
	metrics    prometheus.Registerer
}

// join starts a registrar, until the test ends.
func (w *world) join(o replicaOptions) *replica {
	w.t.Helper()
	if o.folder == "" {
		o.folder = w.t.TempDir()
	}
	r := &replica{life: &life{}, folder: o.folder}
	connection := testkit.RedisClient(w.t, w.redis.URL())
	connection.AddHook(r.life)
	r.store = store.New(connection, w.keyset)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &mortal{&http.Transport{}, r.life}}
	rotator, closeRotator := w.rotator(r.store, o.folder, client, r.life)
	r.rotator = rotator
	known := map[string]registrar.App{
		"default": {Zoom: w.client(zoomtest.DefaultClientID, zoomtest.DefaultClientSecret, client), OAuthApp: recalltest.DefaultOAuthApp},
		"second":  {Zoom: w.client("second-client", "second-secret", client), OAuthApp: secondApp},
	}
	apps := map[string]registrar.App{"default": known["default"]}
	for _, name := range o.apps {
		apps[name] = known[name]
	}
	r.recall = recall.New(recall.Config{APIURL: w.recallURL, APIKey: secret.New("recall-key"), HTTP: client, Gate: o.gate})
	r.service = registrar.New(registrar.Config{
		Store: r.store, Renewer: rotator, CallbackBase: w.base, Log: w.log, Apps: apps, Vendor: recallvendor.New(r.recall),
		LateResponseWait: o.lateAnswer, LockTTL: 300 * time.Millisecond, WorkTimeout: o.workTime, Audit: o.audit, Metrics: o.metrics,
	})
	if o.access == nil {
		o.access = &registrar.Access{Plaintext: true}
	}
	server, _, err := registrar.NewServer(r.service, o.access, o.server...)
	if err != nil {
		w.t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	r.dial = func(transport credentials.TransportCredentials) registrarv1.RegistrarServiceClient {
		w.t.Helper()
		link, err := grpc.NewClient("passthrough:registrar", grpc.WithTransportCredentials(transport),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = link.Close() })
		return registrarv1.NewRegistrarServiceClient(link)
	}
	r.RegistrarServiceClient = r.dial(insecure.NewCredentials())
	if w.RegistrarServiceClient == nil {
		w.RegistrarServiceClient = r.RegistrarServiceClient
	}
	var stopped atomic.Bool
	r.stop = func() {
		if stopped.Swap(true) {
			return
		}
		r.service.EndWatches()
		server.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := r.service.Close(ctx); err != nil {
			w.t.Error(err)
		}
		if r.life.dead.Load() { // its responses are never safe
			closeRotator(time.Millisecond)
			return
		}
		closeRotator(10 * time.Second)
	}
	w.t.Cleanup(r.stop)
	return r
}

// bury stops a dead replica and returns the folder that its journal is in.
func (w *world) bury(r *replica) (folder string) {
	w.t.Helper()
	r.stop()
	return r.folder
}

var errDead = errors.New("this replica is dead")

// life is the life of a replica. It ends before or after one of its outgoing calls.
type life struct {
	dead      atomic.Bool
	swallowed atomic.Int64 // Zoom's responses to codes that may not have arrived
	// ends, if set, is asked before and after each call whether that is the end.
	ends atomic.Pointer[func(call string, after bool) bool]
}

// endWith ends the life at the first call after one that begins with name.
func (l *life) endWith(name string) {
	var made atomic.Bool
	ends := func(call string, after bool) bool {
		if after && strings.HasPrefix(call, name) {
			made.Store(true)
			return false
		}
		return !after && made.Load()
	}
	l.ends.Store(&ends)
}

// call makes an outgoing call, as long as the life lasts.
func (l *life) call(name string, do func() error) error {
	end := func(after bool) bool {
		if ends := l.ends.Load(); ends != nil && (*ends)(name, after) {
			l.dead.Store(true)
		}
		return l.dead.Load()
	}
	if end(false) {
		return errDead
	}
	err := do()
	dead := end(true)
	if name == "POST /oauth/token" && (dead || err != nil) {
		l.swallowed.Add(1)
	}
	if dead {
		return errDead
	}
	return err
}

// paper is a journal that counts what came too late for it.
type paper struct {
	*journal.Journal
	life *life
}

func (p paper) Add(ctx context.Context, e journal.Entry) error {
	err := p.Journal.Add(ctx, e)
	if err != nil && e.OfConsent() {
		p.life.swallowed.Add(1)
	}
	return err
}

// mortal is a way to Zoom and Recall that ends with a life.
type mortal struct {
	http.RoundTripper
	life *life
}

func (m *mortal) RoundTrip(request *http.Request) (response *http.Response, err error) {
	err = m.life.call(request.Method+" "+request.URL.Path, func() error {
		response, err = m.RoundTripper.RoundTrip(request)
		return err
	})
	if err != nil && response != nil {
		_ = response.Body.Close()
		response = nil
	}
	return response, err
}

// A life is a hook of go-redis's.

func (l *life) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *life) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		err := l.call("redis "+command.Name(), func() error { return next(ctx, command) })
		if errors.Is(err, errDead) {
			command.SetErr(err)
		}
		return err
	}
}

func (l *life) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		err := l.call("redis pipeline", func() error { return next(ctx, commands) })
		if errors.Is(err, errDead) {
			for _, command := range commands {
				command.SetErr(err)
			}
		}
		return err
	}
}
