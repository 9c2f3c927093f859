package config

import (
	"fmt"
	"io"
	"time"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"tokenprovider/internal/grant"
)

// Program has the settings of every program.
type Program struct {
	Version   kong.VersionFlag `help:"Print the version and exit."`
	LogLevel  string           `env:"LOG_LEVEL" default:"info" help:"Minimum log level: debug, info, warn or error."`
	LogFormat string           `env:"LOG_FORMAT" default:"json" help:"Format of log lines: json or console."`
}

// Check implements [Checker].
func (p Program) Check(fault func(setting, text string)) {
	if _, err := zapcore.ParseLevel(p.LogLevel); err != nil {
		fault("LOG_LEVEL", "must be debug, info, warn or error")
	}
	if p.LogFormat != "json" && p.LogFormat != "console" {
		fault("LOG_FORMAT", "must be json or console")
	}
}

// The sampling of repeated messages: in each second the first logFirst lines of a
// message are written, then one of every logEach.
const (
	logFirst = 20
	logEach  = 100
)

// Logger returns the program's logger, which writes to w and samples repeated messages.
func (p Program) Logger(w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(p.LogLevel)
	if err != nil {
		level = zapcore.InfoLevel // Check has rejected it
	}
	return p.logger(w, level).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, logFirst, logEach)
	}))
}

// Audit returns the audit logger, named "audit". It writes every line, at any
// LOG_LEVEL.
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

// Renewal has the settings of token renewal.
type Renewal struct {
	RefreshBefore       time.Duration `env:"REFRESH_BEFORE" default:"5m" help:"Time before expiry at which a token is renewed. Must be more than the 2 minutes that Recall needs."`
	RefreshMaxInFlight  int           `env:"REFRESH_MAX_IN_FLIGHT" default:"256" help:"Maximum concurrent renewals for each Zoom app and process."`
	RefreshMaxPerSecond int           `env:"REFRESH_MAX_PER_SECOND" default:"1000" help:"Maximum renewals started per second for each Zoom app and process."`
}

// Check implements [Checker].
func (r Renewal) Check(fault func(setting, text string)) {
	if r.RefreshBefore <= grant.MinTTL {
		fault("REFRESH_BEFORE", fmt.Sprintf("must be greater than %v, the lifetime that Recall needs", grant.MinTTL))
	}
	if r.RefreshMaxInFlight < 1 {
		fault("REFRESH_MAX_IN_FLIGHT", "must be at least 1")
	}
	if r.RefreshMaxPerSecond < 1 {
		fault("REFRESH_MAX_PER_SECOND", "must be at least 1")
	}
}
