package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/secret"
)

// URLForms lists the forms of a Redis URL, for error messages and help texts.
const URLForms = "redis://[user:password@]host:port/db, rediss:// (TLS), " +
	"redis+sentinel://host:port/db?master_name=NAME or redis+cluster://host:port?addr=host2:port"

// Connection is a client of a single Redis, of Sentinel, or of Redis Cluster. It
// detects that Redis may have lost writes; see [FailoverDetector].
type Connection struct {
	redis.UniversalClient
	failovers   *FailoverDetector
	credentials *credentials
}

// credentials are the user and password of new connections. They can be replaced.
type credentials struct {
	address string // the URL without user and password
	current atomic.Pointer[url.Userinfo]
}

func (l *credentials) credentials(context.Context) (user, password string, err error) {
	if info := l.current.Load(); info != nil {
		password, _ = info.Password()
		user = info.Username()
	}
	return user, password, nil
}

// SetURL replaces the user and password of later connections by those of a URL. It
// returns an error if the URL differs in anything else.
func (c *Connection) SetURL(raw secret.Text) error {
	parsed, err := url.Parse(raw.Reveal())
	if err != nil {
		return errors.New("must be " + URLForms)
	}
	info := parsed.User
	parsed.User = nil
	if parsed.String() != c.credentials.address {
		return errors.New("may change its user and password only, without a restart")
	}
	c.credentials.current.Store(info)
	return nil
}

// Connect returns a client for a Redis URL; it does not dial. A suffix of the scheme
// selects Sentinel or Cluster, with the query parameters of go-redis's
// ParseFailoverURL and ParseClusterURL. Errors do not quote the URL, which may have a
// password.
func Connect(raw secret.Text) (*Connection, error) {
	parsed, err := url.Parse(raw.Reveal())
	if err != nil {
		return nil, errors.New("must be " + URLForms)
	}
	login := &credentials{}
	login.current.Store(parsed.User)
	place := *parsed
	place.User = nil
	login.address = place.String()
	scheme, kind, _ := strings.Cut(parsed.Scheme, "+")
	parsed.Scheme = scheme
	plain, continuity := parsed.String(), &FailoverDetector{}
	var client redis.UniversalClient
	switch kind {
	case "":
		opts, err := redis.ParseURL(plain)
		if err != nil {
			return nil, urlError(err)
		}
		setDefaults(&opts.MaxRetries, &opts.DialTimeout, &opts.ReadTimeout, &opts.WriteTimeout, &opts.PoolTimeout)
		opts.ContextTimeoutEnabled, opts.DialerRetries, opts.OnConnect = true, 1, continuity.onConnect
		opts.CredentialsProviderContext = login.credentials
		client = redis.NewClient(opts)
	case "sentinel":
		opts, err := redis.ParseFailoverURL(plain)
		if err != nil {
			return nil, urlError(err)
		}
		if opts.MasterName == "" {
			return nil, errors.New("master_name is required for redis+sentinel://")
		}
		setDefaults(&opts.MaxRetries, &opts.DialTimeout, &opts.ReadTimeout, &opts.WriteTimeout, &opts.PoolTimeout)
		opts.ContextTimeoutEnabled, opts.DialerRetries, opts.OnConnect = true, 1, continuity.onConnect
		opts.CredentialsProviderContext = login.credentials
		client = redis.NewFailoverClient(opts)
	case "cluster":
		opts, err := redis.ParseClusterURL(plain)
		if err != nil {
			return nil, urlError(err)
		}
		setDefaults(&opts.MaxRetries, &opts.DialTimeout, &opts.ReadTimeout, &opts.WriteTimeout, &opts.PoolTimeout)
		opts.ContextTimeoutEnabled, opts.DialerRetries, opts.OnConnect = true, 1, continuity.onConnect
		opts.CredentialsProviderContext = login.credentials
		client = redis.NewClusterClient(opts)
	default:
		return nil, fmt.Errorf("unknown scheme suffix %q: must be %s", kind, URLForms)
	}
	return &Connection{client, continuity, login}, nil
}

// setDefaults sets the options that the URL leaves open. Recall waits 5 s for a
// callback. One retry covers a broken connection; callers decide about more, as
// they know what may be repeated.
func setDefaults(retries *int, timeouts ...*time.Duration) {
	if *retries == 0 {
		*retries = 1
	}
	for _, timeout := range timeouts {
		if *timeout == 0 {
			*timeout = time.Second
		}
	}
}

// urlError returns the error of go-redis without the parts of the URL that it quotes.
func urlError(err error) error {
	text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "redis: "), ":")
	return fmt.Errorf("%s: must be %s", text, URLForms)
}
