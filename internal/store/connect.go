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

// URLForms is how a REDIS_URL may look, for error messages and help texts.
const URLForms = "redis://[user:password@]host:port/db, rediss:// (TLS), " +
	"redis+sentinel://host:port/db?master_name=NAME or redis+cluster://host:port?addr=host2:port"

// Connection is a client for Redis, of whatever kind, that notices when Redis
// may have forgotten something.
type Connection struct {
	redis.UniversalClient
	failovers   *FailoverDetector
	credentials *credentials
}

// credentials is how new connections authenticate.
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

// SetURL takes user and password from another Redis URL, for connections that are
// made from now on. It is an error if the URL differs in anything else.
func (c *Connection) SetURL(raw secret.Text) error {
	parsed, err := url.Parse(raw.Reveal())
	if err != nil {
		return errors.New("not a URL: want " + URLForms)
	}
	info := parsed.User
	parsed.User = nil
	if parsed.String() != c.credentials.address {
		return errors.New("it differs in more than user and password: that needs a restart")
	}
	c.credentials.current.Store(info)
	return nil
}

// Connect makes a client for a Redis URL; it does not dial. Sentinel and
// Cluster are spelled by a suffix of the scheme and take the query parameters
// of go-redis's ParseFailoverURL and ParseClusterURL. Errors never quote the
// URL, which may hold a password.
func Connect(raw secret.Text) (*Connection, error) {
	parsed, err := url.Parse(raw.Reveal())
	if err != nil {
		return nil, errors.New("not a URL: want " + URLForms)
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
			return nil, errors.New("redis+sentinel:// needs ?master_name=NAME")
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
		return nil, fmt.Errorf("unknown kind %q: want %s", kind, URLForms)
	}
	return &Connection{client, continuity, login}, nil
}

// setDefaults gives the bounds that the URL leaves open. They fit a callback's
// patience: Recall waits 5 s for all of it. One repetition gets over a broken
// connection; what takes longer is for the callers, who know what they may
// repeat.
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

// urlError says what go-redis found wrong without the parts that it quotes.
func urlError(err error) error {
	text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "redis: "), ":")
	return fmt.Errorf("%s: want %s", text, URLForms)
}
