package registrar

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"tokenprovider/internal/reload"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	// errNoIdentity means that the client's certificate has no name.
	errNoIdentity = errors.New("client certificate has no URI or DNS SAN")
	// errForbidden means that the policy denies the call.
	errForbidden = errors.New("not allowed")
)

// overLimitError means that a client is over its own limit.
type overLimitError struct{ wait time.Duration }

func (e *overLimitError) Error() string { return "too many calls: this client is over its own limit" }

// The limit of a client without one in the policy: calls per second, and the burst.
// Each replica counts separately.
const (
	defaultRate  = 100
	defaultBurst = 200
)

// groups are the groups of methods that a policy can name.
var groups = map[string][]string{
	"register": {"RegisterUser", "DeregisterUser", "RotateCallbackSecret"},
	"read":     {"GetUser", "ListUsers", "WatchUsers"},
	"tokens":   {"GetAccessToken"},
}

// withoutPolicy are the methods that every authenticated client may call if there is
// no policy.
var withoutPolicy = methods("register", "read")

func methods(names ...string) map[string]bool {
	all := map[string]bool{}
	for _, name := range names {
		if group, ok := groups[name]; ok {
			for _, method := range group {
				all[method] = true
			}
			continue
		}
		all[name] = true
	}
	return all
}

// Policy lists the clients and what each may call; see [ReadPolicy].
type Policy struct{ clients []client }

// client is a client in the policy.
type client struct {
	name       string
	identities []string
	methods    map[string]bool
	rate       rate.Limit
	burst      int
}

// ReadPolicy reads GRPC_POLICY_FILE, in YAML:
//
//	clients:
//	  - name: bots                 # in the audit log
//	    identities:                # of the certificate, any one of these
//	      - spiffe://example.org/ns/bots/sa/*
//	      - dns:bots.internal.example
//	    may: [register, read]      # groups (register, read, tokens) or methods
//	    rate: 50                   # calls a second; 0 or nothing: 100
//	    burst: 100                 # calls at once; 0 or nothing: twice the rate
//
// An identity is a URI SAN of the certificate, such as a SPIFFE id, where * matches
// anything but a slash; or dns: and a DNS SAN. The first client that matches is the
// caller. A caller without a match may call nothing. The error has one line for each
// fault.
func ReadPolicy(content []byte) (*Policy, error) {
	var document struct {
		Clients []struct {
			Name       string   `yaml:"name"`
			Identities []string `yaml:"identities"`
			May        []string `yaml:"may"`
			Rate       float64  `yaml:"rate"`
			Burst      int      `yaml:"burst"`
		} `yaml:"clients"`
	}
	if err := reload.YAML(content, &document); err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, method := range registrarv1.RegistrarService_ServiceDesc.Methods {
		known[method.MethodName] = true
	}
	for _, stream := range registrarv1.RegistrarService_ServiceDesc.Streams {
		known[stream.StreamName] = true
	}
	var faults []error
	policy := &Policy{}
	for i, c := range document.Clients {
		fault := func(text string, values ...any) {
			faults = append(faults, fmt.Errorf("client %d (%q): %s", i+1, c.Name, fmt.Sprintf(text, values...)))
		}
		if c.Name == "" {
			fault("name: is required")
		}
		if slices.ContainsFunc(policy.clients, func(other client) bool { return other.name == c.Name }) {
			fault("name: must be unique")
		}
		if len(c.Identities) == 0 {
			fault("identities: is required: a URI or dns: name of the certificate")
		}
		for _, identity := range c.Identities {
			parsed, err := url.Parse(identity)
			_, pattern := path.Match(identity, "")
			if err != nil || pattern != nil || parsed.Scheme == "" || parsed.Scheme != "dns" && parsed.Host == "" || identity == "dns:" {
				fault("identities: %q must be a URI, such as spiffe://example.org/ns/bots/sa/api, or dns:NAME", identity)
			}
		}
		allowed := methods(c.May...)
		for _, method := range slices.Sorted(maps.Keys(allowed)) {
			if !known[method] {
				fault("may: %q must be a group (register, read, tokens) or a method", method)
			}
		}
		if c.Rate < 0 || c.Burst < 0 {
			fault("rate, burst: must not be less than 0")
		}
		limit := client{c.Name, c.Identities, allowed, rate.Limit(c.Rate), c.Burst}
		if c.Rate == 0 {
			limit.rate = defaultRate
		}
		if c.Burst == 0 {
			limit.burst = max(1, int(2*limit.rate))
		}
		policy.clients = append(policy.clients, limit)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return policy, nil
}

// find returns the first client with one of the identities.
func (p *Policy) find(identities []string) (client, bool) {
	for _, c := range p.clients {
		for _, pattern := range c.identities {
			for _, identity := range identities {
				if fits, err := path.Match(pattern, identity); err == nil && fits {
					return c, true
				}
			}
		}
	}
	return client{}, false
}

// Access authorizes calls and limits their rate. It is safe for concurrent use.
type Access struct {
	// Policy is the current policy. Nil: every authenticated client may call all but
	// GetAccessToken.
	Policy *reload.Value[*Policy]
	// Plaintext allows every call, without a limit: clients have no certificates.
	Plaintext bool

	mu       sync.Mutex
	limiters map[string]*limiter
}

// limiter is a client's limit, until the policy changes it.
type limiter struct {
	*rate.Limiter
	used time.Time
}

// admit returns the caller's name, and an error if the call is not allowed.
func (a *Access) admit(ctx context.Context, method string) (name string, err error) {
	if a.Plaintext {
		return "anonymous", nil
	}
	identities, err := identitiesOf(ctx)
	if err != nil {
		return "", err
	}
	caller := client{name: identities[0], methods: withoutPolicy, rate: defaultRate, burst: defaultBurst}
	if a.Policy != nil {
		known, ok := a.Policy.Get().find(identities)
		if !ok {
			return caller.name, fmt.Errorf("%w: the policy has no client with this certificate's names", errForbidden)
		}
		caller = known
	}
	if !caller.methods[method] {
		return caller.name, fmt.Errorf("%w: the client may not call %s", errForbidden, method)
	}
	return caller.name, a.limit(caller)
}

// limit counts a client's call, or returns an [*overLimitError].
func (a *Access) limit(c client) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	l := a.limiters[c.name]
	if l == nil || l.Limit() != c.rate || l.Burst() != c.burst {
		const many = 10_000
		if len(a.limiters) >= many { // a client without calls for a minute has its full burst again
			maps.DeleteFunc(a.limiters, func(_ string, l *limiter) bool { return now.Sub(l.used) > time.Minute })
		}
		if a.limiters == nil {
			a.limiters = map[string]*limiter{}
		}
		l = &limiter{Limiter: rate.NewLimiter(c.rate, c.burst)}
		a.limiters[c.name] = l
	}
	l.used = now
	place := l.ReserveN(now, 1)
	if wait := place.DelayFrom(now); wait > 0 {
		place.CancelAt(now)
		return &overLimitError{wait}
	}
	return nil
}

// identitiesOf returns the names in the caller's certificate, URIs first. The TLS
// handshake has verified the certificate.
func identitiesOf(ctx context.Context) ([]string, error) {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errNoIdentity
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errNoIdentity
	}
	return identities(info.State.VerifiedChains[0][0])
}

func identities(certificate *x509.Certificate) (all []string, err error) {
	for _, uri := range certificate.URIs {
		all = append(all, uri.String())
	}
	for _, name := range certificate.DNSNames {
		all = append(all, "dns:"+strings.ToLower(name))
	}
	if len(all) == 0 {
		return nil, errNoIdentity
	}
	return all, nil
}

// clientKey is the context key of the client's name.
type clientKey struct{}

// clientOf returns the name of a call's client, or "registrar" for the registrar's own
// work.
func clientOf(ctx context.Context) string {
	if name, ok := ctx.Value(clientKey{}).(string); ok {
		return name
	}
	return "registrar"
}
