package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/zap"

	"tokenprovider/internal/config"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
)

// Redis has the settings of the connection to Redis.
type Redis struct {
	RedisURL     secret.Text `env:"REDIS_URL" placeholder:"URL" needed:"redis://host:port/db" help:"URL of the Redis with the grants: redis://[user:password@]host:port/db, rediss:// (TLS), redis+sentinel://host:port/db?master_name=NAME or redis+cluster://host:port?addr=host2:port."`
	RedisURLFile string      `env:"REDIS_URL_FILE" placeholder:"FILE" help:"File with the Redis URL. User and password are reloaded when it changes."`

	connection *store.Connection
}

// Check implements [config.Checker]. It makes the connection, without dialing, to
// report an invalid URL with the other faults.
func (r *Redis) Check(fault func(setting, text string)) {
	if r.RedisURL.IsZero() {
		return
	}
	connection, err := store.Connect(r.RedisURL)
	if err != nil {
		fault("REDIS_URL", err.Error())
	}
	r.connection = connection
}

// Connection returns the connection to Redis, nil if REDIS_URL is not set.
func (r *Redis) Connection() *store.Connection { return r.connection }

// Encryption has the settings of the keyset.
type Encryption struct {
	KeysetFile   string `env:"KEYSET_FILE" placeholder:"FILE" needed:"a Tink AEAD keyset in JSON; make one with: tokenctl keyset create" help:"File with the Tink AEAD keyset (JSON) that encrypts every secret in Redis. Reloaded when it changes."`
	KeysetKMSURI string `name:"keyset-kms-uri" env:"KEYSET_KMS_URI" placeholder:"URI" help:"KMS key that has wrapped the keyset: aws-kms://ARN, gcp-kms://NAME or hcvault://HOST/transit/keys/NAME. Empty: the keyset is in clear."`

	file *keyset.File
}

// Check implements [config.Checker]. It reads the keyset, to report an invalid one
// with the other faults.
func (e *Encryption) Check(fault func(setting, text string)) {
	if e.KeysetFile == "" {
		return
	}
	var err error
	if e.file, err = keyset.Open(context.Background(), e.KeysetFile, e.KeysetKMSURI); err != nil {
		fault("KEYSET_FILE", err.Error())
	}
}

// Keyset returns the keyset, nil if there is no valid one.
func (e *Encryption) Keyset() *seal.Keyset {
	if e.file == nil {
		return nil
	}
	return e.file.Keyset()
}

// Records has the settings of a program that reads grants from Redis.
type Records struct {
	Redis
	Encryption
}

// Check implements [config.Checker].
func (r *Records) Check(fault func(setting, text string)) {
	r.Redis.Check(fault)
	r.Encryption.Check(fault)
}

// Open returns the store, after checking that Redis responds and that the keyset
// decrypts its records. It writes nothing.
func (r *Records) Open(ctx context.Context) (*store.Store, error) {
	logging.Disable() // go-redis reports what matters as errors, too
	opened := store.New(r.connection, r.Keyset())
	if _, err := opened.CheckDecrypts(ctx); err != nil {
		if errors.Is(err, store.ErrKeyset) {
			err = config.Faults{"KEYSET_FILE: " + err.Error()}
		}
		return nil, errors.Join(err, r.connection.Close())
	}
	return opened, nil
}

// Close closes the connections to Redis.
func (r *Records) Close() error {
	if r.connection == nil {
		return nil
	}
	return r.connection.Close()
}

// Storage has the settings of a program that renews tokens: Redis, keyset and
// journal.
type Storage struct {
	Redis
	ReloadInterval    time.Duration `env:"RELOAD_INTERVAL" default:"10s" help:"Interval between checks of the files of secrets, certificates and policies. Changes need no restart."`
	RedisStartTimeout time.Duration `env:"REDIS_START_TIMEOUT" default:"30s" help:"Maximum wait for Redis at startup."`
	RedisAllowLoss    bool          `name:"redis-allow-data-loss" env:"REDIS_ALLOW_DATA_LOSS" help:"Permission to start with a Redis whose configuration loses grants. For trials."`
	RedisWaitReplicas int           `env:"REDIS_WAIT_REPLICAS" default:"0" help:"Redis replicas that must have a renewed token before its journal entry is dropped. 0: none."`
	JournalDir        string        `env:"JOURNAL_DIR" default:"journal" help:"Directory of the journal: Zoom's encrypted responses, until Redis has them. One for each process; must survive its restart."`
	Encryption
}

// Check implements [config.Checker].
func (s *Storage) Check(fault func(setting, text string)) {
	s.Redis.Check(fault)
	s.Encryption.Check(fault)
	if s.ReloadInterval <= 0 {
		fault("RELOAD_INTERVAL", "must be greater than 0")
	}
	if s.RedisStartTimeout <= 0 {
		fault("REDIS_START_TIMEOUT", "must be greater than 0")
	}
	if s.RedisWaitReplicas < 0 {
		fault("REDIS_WAIT_REPLICAS", "must be at least 0")
	}
	if s.JournalDir == "" {
		fault("JOURNAL_DIR", "is required: a directory")
	}
}

// journalRetention is the time for which a committed response stays in the journal, to
// be replayed if Redis loses acknowledged writes.
const journalRetention = 5 * time.Minute

// Open opens the journal and returns it with the store, once Redis responds and the
// keyset decrypts its records. [config.Faults] are errors of the configuration.
func (s *Storage) Open(ctx context.Context, log *zap.Logger) (*store.Store, *journal.Journal, error) {
	redis.SetLogger(redisLog{log.Named("redis")})
	responses, err := journal.Open(s.JournalDir, s.Keyset(), journalRetention)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("JOURNAL_DIR: %w", err), s.connection.Close())
	}
	opened := store.New(s.connection, s.Keyset())
	opened.SetWaitReplicas(s.RedisWaitReplicas)
	if err := s.await(ctx, log, opened); err != nil {
		return nil, nil, errors.Join(err, s.Close(responses))
	}
	return opened, responses, nil
}

// RegisterMetrics registers the metrics of Redis, its records and the journal.
func (s *Storage) RegisterMetrics(opened *store.Store, responses *journal.Journal, metrics prometheus.Registerer) {
	s.connection.RegisterMetrics(metrics)
	metrics.MustRegister(store.NewCollector(opened), responses)
}

// Follow reloads the keyset and the credentials for Redis when their files change,
// until ctx ends.
func (s *Storage) Follow(ctx context.Context, log *zap.Logger) {
	var secrets config.Secrets
	secrets.On("REDIS_URL", s.RedisURLFile, s.connection.SetURL)
	var following sync.WaitGroup
	following.Go(func() { secrets.Follow(ctx, s.ReloadInterval, log) })
	s.file.Follow(ctx, s.ReloadInterval, log)
	following.Wait()
}

// Close closes the journal and the connections to Redis.
func (s *Storage) Close(responses *journal.Journal) error {
	return errors.Join(responses.Close(), s.connection.Close())
}

// await waits until Redis can be used, for RedisStartTimeout.
func (s *Storage) await(ctx context.Context, log *zap.Logger, opened *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, s.RedisStartTimeout)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := s.checkRedis(ctx, log, opened)
		var faults config.Faults
		if err == nil || errors.As(err, &faults) {
			return err
		}
		log.Warn("redis unavailable; waiting", zap.Error(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("no response from Redis within REDIS_START_TIMEOUT (%v): %w", s.RedisStartTimeout, err)
		case <-time.After(wait):
		}
	}
}

// checkRedis returns [config.Faults] if the keyset does not decrypt the records, or
// if Redis is configured to lose grants and that is not permitted.
func (s *Storage) checkRedis(ctx context.Context, log *zap.Logger, opened *store.Store) error {
	err := opened.CheckKeyset(ctx)
	if errors.Is(err, store.ErrKeyset) {
		return config.Faults{"KEYSET_FILE: " + err.Error()}
	}
	if err != nil {
		return err
	}
	problems, err := opened.CheckConfig(ctx)
	if err != nil {
		return err
	}
	var faults config.Faults
	for _, problem := range problems {
		if problem.Fatal && !s.RedisAllowLoss {
			faults = append(faults, "REDIS_URL: "+problem.Text+"; or, for a trial, set REDIS_ALLOW_DATA_LOSS=true")
			continue
		}
		log.Warn("redis may lose grants", zap.String("problem", problem.Text))
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// redisLog writes go-redis's log lines to ours, at debug level.
type redisLog struct{ *zap.Logger }

func (l redisLog) Printf(_ context.Context, format string, values ...any) {
	l.Debug(fmt.Sprintf(format, values...))
}
