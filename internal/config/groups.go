package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"tokenprovider/internal/journal"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/telemetry"
)

// DefaultApp is the name of the Zoom app where there is only one.
const DefaultApp = "default"

// Program holds what every program has.
type Program struct {
	Version   kong.VersionFlag `help:"Print the version and exit."`
	LogLevel  string           `env:"LOG_LEVEL" default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat string           `env:"LOG_FORMAT" default:"json" help:"How log lines look: json or console."`
}

// Check implements [Checker].
func (p Program) Check(fault func(setting, text string)) {
	if _, err := zapcore.ParseLevel(p.LogLevel); err != nil {
		fault("LOG_LEVEL", "not debug, info, warn or error")
	}
	if p.LogFormat != "json" && p.LogFormat != "console" {
		fault("LOG_FORMAT", "not json or console")
	}
}

// Logger returns the logger that was asked for, writing to w. A message that
// repeats is not told each time.
func (p Program) Logger(w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(p.LogLevel)
	if err != nil {
		level = zapcore.InfoLevel // Check has refused it
	}
	return p.logger(w, level).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		// What repeats is told so often in a second, and then once in a hundred times.
		return zapcore.NewSamplerWithOptions(core, time.Second, 20, 100)
	}))
}

// Audit returns the logger of who did what, named "audit". It writes every line,
// whatever LOG_LEVEL is.
func (p Program) Audit(w io.Writer) *zap.Logger { return p.logger(w, zapcore.InfoLevel).Named("audit") }

func (p Program) logger(w io.Writer, level zapcore.Level) *zap.Logger {
	config := zap.NewProductionEncoderConfig()
	config.TimeKey, config.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(config)
	if p.LogFormat == "console" {
		config.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(config)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
}

// Redis is where the grants are.
type Redis struct {
	RedisURL     secret.Text `env:"REDIS_URL" placeholder:"URL" needed:"redis://host:port/db" help:"Where the grants are: redis://[user:password@]host:port/db, rediss:// (TLS), redis+sentinel://host:port/db?master_name=NAME or redis+cluster://host:port?addr=host2:port."`
	RedisURLFile string      `env:"REDIS_URL_FILE" placeholder:"FILE" help:"File that holds the Redis URL."`

	client *store.Connection
}

// Check implements [Checker]. It makes the client, so that a wrong URL is a fault
// like any other.
func (r *Redis) Check(fault func(setting, text string)) {
	if r.RedisURL.IsZero() {
		return
	}
	client, err := store.Connect(r.RedisURL)
	if err != nil {
		fault("REDIS_URL", err.Error())
	}
	r.client = client
}

// Encryption is what seals every secret in Redis.
type Encryption struct {
	KeysetFile   string `env:"KEYSET_FILE" placeholder:"FILE" needed:"a Tink AEAD keyset in JSON; make one with: tokenctl keyset create" help:"Tink AEAD keyset (JSON) that seals every secret in Redis. It is read again when it changes."`
	KeysetKMSURI string `name:"keyset-kms-uri" env:"KEYSET_KMS_URI" placeholder:"URI" help:"Key of a KMS that has wrapped the keyset: aws-kms://ARN, gcp-kms://NAME or hcvault://HOST/transit/keys/NAME. Empty: the keyset is in clear."`

	keyset *keyset.File
}

// Check implements [Checker]. It reads the keyset, so that a wrong one is a fault
// like any other.
func (s *Encryption) Check(fault func(setting, text string)) {
	if s.KeysetFile == "" {
		return
	}
	var err error
	if s.keyset, err = keyset.Open(context.Background(), s.KeysetFile, s.KeysetKMSURI); err != nil {
		fault("KEYSET_FILE", err.Error())
	}
}

// Keyset returns the keyset in use, nil if there is none.
func (s *Encryption) Keyset() *seal.Keyset {
	if s.keyset == nil {
		return nil
	}
	return s.keyset.Keyset()
}

// Storage is where grants are kept.
type Storage struct {
	Redis
	ReloadInterval    time.Duration `env:"RELOAD_INTERVAL" default:"10s" help:"How often the files of secrets, certificates and policies are looked at. What has changed is taken without a restart."`
	RedisStartTimeout time.Duration `env:"REDIS_START_TIMEOUT" default:"30s" help:"How long to wait for Redis at the start."`
	RedisAllowLoss    bool          `name:"redis-allow-data-loss" env:"REDIS_ALLOW_DATA_LOSS" help:"Start although Redis, as it is set up, loses grants. For trials."`
	RedisWaitReplicas int           `env:"REDIS_WAIT_REPLICAS" default:"0" help:"On how many replicas of Redis a renewed token must be before it counts as safe. Until then it stays in the journal."`
	JournalDir        string        `env:"JOURNAL_DIR" default:"journal" help:"Folder for what Zoom has answered and Redis may not have yet, sealed. One for each process; it must survive a restart of the process."`
	Encryption
}

// Check implements [Checker].
func (s *Storage) Check(fault func(setting, text string)) {
	s.Redis.Check(fault)
	s.Encryption.Check(fault)
	if s.ReloadInterval <= 0 {
		fault("RELOAD_INTERVAL", "not more than 0")
	}
	if s.RedisStartTimeout <= 0 {
		fault("REDIS_START_TIMEOUT", "not more than 0")
	}
	if s.RedisWaitReplicas < 0 {
		fault("REDIS_WAIT_REPLICAS", "less than 0")
	}
	if s.JournalDir == "" {
		fault("JOURNAL_DIR", "empty: name a folder")
	}
}

// journalKeep is how long an answer that is safe in Redis stays in the journal,
// for a Redis that is restored to a moment before it.
const journalKeep = 5 * time.Minute

// Open returns the store, once Redis answers and the keyset opens what is in
// it, and the journal. A wrong keyset is a fault in the settings.
func (s *Storage) Open(ctx context.Context, log *zap.Logger) (*store.Store, *journal.Journal, error) {
	redis.SetLogger(redisLog{log.Named("redis")})
	kept, err := journal.Open(s.JournalDir, s.keyset.Keyset(), journalKeep)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("JOURNAL_DIR: %w", err), s.client.Close())
	}
	if err := telemetry.Redis(s.client.UniversalClient); err != nil {
		return nil, nil, errors.Join(err, s.Close(kept))
	}
	opened := store.New(s.client, s.keyset.Keyset())
	opened.WaitReplicas(s.RedisWaitReplicas)
	if err := s.await(ctx, log, opened); err != nil {
		return nil, nil, errors.Join(err, s.Close(kept))
	}
	return opened, kept, nil
}

// RegisterMetrics tells of Redis, of what is in it, and of the journal.
func (s *Storage) RegisterMetrics(opened *store.Store, kept *journal.Journal, metrics prometheus.Registerer) {
	s.client.RegisterMetrics(metrics)
	metrics.MustRegister(store.NewCollector(opened), kept)
}

// Follow keeps the keyset and the login to Redis in step with their files until
// ctx ends.
func (s *Storage) Follow(ctx context.Context, log *zap.Logger) {
	var secrets Secrets
	secrets.On("REDIS_URL", s.RedisURLFile, s.client.SetURL)
	var following sync.WaitGroup
	following.Go(func() { secrets.Follow(ctx, s.ReloadInterval, log) })
	s.keyset.Follow(ctx, s.ReloadInterval, log)
	following.Wait()
}

// Close closes the journal and the connections to Redis.
func (s *Storage) Close(kept *journal.Journal) error {
	return errors.Join(kept.Close(), s.client.Close())
}

func (s *Storage) await(ctx context.Context, log *zap.Logger, opened *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, s.RedisStartTimeout)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := opened.CheckKeyset(ctx)
		if err == nil {
			err = s.tellDangers(ctx, log, opened)
		}
		var faults Faults
		switch {
		case err == nil:
			return nil
		case errors.As(err, &faults):
			return faults
		case errors.Is(err, store.ErrKeyset):
			return Faults{"KEYSET_FILE: " + err.Error()}
		}
		log.Warn("waiting for Redis", zap.Error(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("Redis did not answer within REDIS_START_TIMEOUT (%v): %w", s.RedisStartTimeout, err)
		case <-time.After(wait):
		}
	}
}

// tellDangers refuses a Redis that loses grants, unless that is allowed.
func (s *Storage) tellDangers(ctx context.Context, log *zap.Logger, opened *store.Store) error {
	dangers, err := opened.CheckConfig(ctx)
	if err != nil {
		return err
	}
	var faults Faults
	for _, danger := range dangers {
		if danger.Fatal && !s.RedisAllowLoss {
			faults = append(faults, "REDIS_URL: "+danger.Text+"; or, for a trial, set REDIS_ALLOW_DATA_LOSS=true")
			continue
		}
		log.Warn("Redis may lose grants", zap.String("danger", danger.Text))
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// redisLog brings what go-redis says of its connections into our log.
type redisLog struct{ *zap.Logger }

func (l redisLog) Printf(_ context.Context, format string, values ...any) {
	l.Debug(fmt.Sprintf(format, values...))
}

// Renewal is how access tokens are renewed.
type Renewal struct {
	RefreshBefore       time.Duration `env:"REFRESH_BEFORE" default:"5m" help:"How long before its expiry a token is refreshed. It needs room for Recall's 2 minutes and some retries."`
	RefreshMaxInFlight  int           `env:"REFRESH_MAX_IN_FLIGHT" default:"256" help:"Refreshes at once, at most, for each Zoom app and process."`
	RefreshMaxPerSecond int           `env:"REFRESH_MAX_PER_SECOND" default:"1000" help:"Refreshes started in a second, at most, for each Zoom app and process."`
}

// Check implements [Checker].
func (r Renewal) Check(fault func(setting, text string)) {
	if r.RefreshBefore < 0 {
		fault("REFRESH_BEFORE", "less than 0")
	}
	if r.RefreshMaxInFlight < 1 {
		fault("REFRESH_MAX_IN_FLIGHT", "less than 1")
	}
	if r.RefreshMaxPerSecond < 1 {
		fault("REFRESH_MAX_PER_SECOND", "less than 1")
	}
}
