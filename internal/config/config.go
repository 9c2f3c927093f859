// Package config parses and validates a program's settings, from flags and the
// environment; a flag overrides the environment. A secret may also come from the
// file that its _FILE setting names. Package app opens what the settings describe.
//
// All faults are reported together, each in one line with the setting's name and
// never its value. [Parse] fills a struct; the other files have the settings that
// programs share.
//
// The struct's tags are kong's, and one more: needed:"hint" marks a required setting
// and says what to set.
package config

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"tokenprovider/internal/secret"
)

// ErrDone is returned after --help or --version: the program should end.
var ErrDone = errors.New("nothing more to do")

// Faults are all faults of the settings, one line each.
type Faults []string

func (f Faults) Error() string { return strings.Join(f, "\n") }

// Checker is implemented by settings whose types do not express all rules.
type Checker interface {
	// Check calls fault for each invalid setting, with the name of its variable.
	Check(fault func(setting, text string))
}

// Parse fills the struct that target points to. It returns [Faults], or [ErrDone]
// after --help or --version.
func Parse(program, about string, target any, args []string, stdout io.Writer) error {
	_, err := ParseCommand(program, about, target, args, stdout)
	return err
}

// ParseCommand is [Parse] for a program of several commands: only the settings of
// the selected command count. It returns that command's struct, or the target itself
// if there are no commands.
func ParseCommand(program, about string, target any, args []string, stdout io.Writer) (command any, err error) {
	p := &parser{faults: map[string]string{}, malformed: map[*kong.Value]string{}}
	type exit struct{}
	defer func() { // kong ends the process after --help, unless its exit does not return
		if reason := recover(); reason != nil {
			if _, exited := reason.(exit); !exited {
				panic(reason)
			}
			err = ErrDone
		}
	}()
	model, err := p.model(program, about, target, kong.Writers(stdout, stdout), kong.Exit(func(int) { panic(exit{}) }))
	if err != nil {
		return nil, err
	}
	parsed, err := model.Parse(args)
	if err != nil {
		return nil, Faults{err.Error() + " (see --help)"}
	}
	command = target
	values := slices.Clone(model.Model.Positional)
	if selected := parsed.Selected(); selected != nil {
		command = selected.Target.Addr().Interface()
		values = slices.Clone(selected.Positional)
	}
	p.checkAll(command, parsed.Flags(), values)
	faults := p.sorted()
	if len(faults) == 0 {
		return command, nil
	}
	if tolerant, ok := command.(IgnoresSettings); ok {
		tolerant.Tolerate(faults)
		return command, nil
	}
	return nil, faults
}

// checkAll checks all settings of a command.
func (p *parser) checkAll(command any, flags []*kong.Flag, values []*kong.Value) {
	byName := map[string]*kong.Flag{}
	for _, flag := range flags {
		byName[flag.Name] = flag
		values = append(values, flag.Value)
	}
	for _, value := range values {
		if text, malformed := p.malformed[value]; malformed {
			p.fault(settingName(value), text)
		}
	}
	optional, _ := command.(OptionalSettings)
	for _, flag := range flags {
		p.check(flag, byName[flag.Name+"-file"], optional)
	}
	if checker, ok := command.(Checker); ok {
		checker.Check(p.fault)
	}
}

// sorted returns the faults in the order of their settings.
func (p *parser) sorted() (faults Faults) {
	for setting, text := range p.faults {
		faults = append(faults, setting+": "+text)
	}
	slices.Sort(faults)
	return faults
}

// OptionalSettings is implemented by commands that do not need some settings that
// others require.
type OptionalSettings interface {
	// IsOptional reports whether the command runs without a setting.
	IsOptional(setting string) bool
}

// IgnoresSettings is implemented by commands that run with invalid settings.
type IgnoresSettings interface {
	// Tolerate receives the faults, and the command runs.
	Tolerate(faults Faults)
}

// Model returns the commands and flags of a program, for tests of its help and of
// documented command lines.
func Model(program string, target any) (*kong.Application, error) {
	p := &parser{faults: map[string]string{}, malformed: map[*kong.Value]string{}}
	model, err := p.model(program, "", target)
	if err != nil {
		return nil, err
	}
	return model.Model, nil
}

func (p *parser) model(program, about string, target any, options ...kong.Option) (*kong.Kong, error) {
	model, err := kong.New(target, append(options,
		kong.Name(program), kong.Description(about),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100, Compact: true}),
		kong.Vars{"version": program + " " + Version()},
		kong.TypeMapper(reflect.TypeFor[time.Duration](), lenient(p, "a duration, such as 30s or 5m", time.ParseDuration)),
		kong.TypeMapper(reflect.TypeFor[*url.URL](), lenient(p, "an absolute URL, such as https://example.com", ParseURL)),
		kong.TypeMapper(reflect.TypeFor[int](), lenient(p, "a whole number", strconv.Atoi)),
		kong.TypeMapper(reflect.TypeFor[bool](), boolMapper{p}),
	)...)
	if err != nil {
		return nil, fmt.Errorf("declaring settings: %w", err)
	}
	return model, nil
}

// Version returns what --version prints: the versions of the module and of Go, and
// the commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, commit := info.Main.Version, ""
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			commit = " " + setting.Value[:min(12, len(setting.Value))]
		}
	}
	return version + commit + " " + info.GoVersion
}

type parser struct {
	faults    map[string]string      // setting -> text
	malformed map[*kong.Value]string // of all commands, also those not selected
}

// fault records a fault, unless the setting has one.
func (p *parser) fault(setting, text string) {
	if _, known := p.faults[setting]; !known {
		p.faults[setting] = text
	}
}

// check reads the file of a secret, and reports a required setting that is missing.
// twin is the _FILE setting; nil if there is none.
func (p *parser) check(flag, twin *kong.Flag, optional OptionalSettings) {
	setting := settingName(flag.Value)
	text, isSecret := flag.Target.Addr().Interface().(*secret.Text)
	if isSecret && twin != nil {
		if path := twin.Target.String(); path != "" {
			if !text.IsZero() {
				p.fault(setting, "is mutually exclusive with "+settingName(twin.Value))
				return
			}
			content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
			if err != nil {
				p.fault(settingName(twin.Value), fileFault(err))
				return
			}
			*text = trim(content)
		}
	}
	if hint := flag.Tag.Get("needed"); hint != "" && flag.Target.IsZero() && (optional == nil || !optional.IsOptional(setting)) {
		if twin != nil {
			hint += "; or name a file in " + settingName(twin.Value)
		}
		p.fault(setting, "is required: "+hint)
	}
}

// fileFault describes an error of reading a file without its path, which is the
// setting's value.
func fileFault(err error) string {
	var cause *os.PathError
	if errors.As(err, &cause) {
		return "the file cannot be read: " + cause.Err.Error()
	}
	return "the file cannot be read"
}

// settingName returns the variable of a setting, or its flag if it has none.
func settingName(v *kong.Value) string {
	switch {
	case len(v.Tag.Envs) > 0:
		return v.Tag.Envs[0]
	case v.Flag == nil:
		return "<" + v.Name + ">"
	}
	return "--" + v.Name
}

// lenient returns a mapper that records a malformed value and continues, so that all
// faults are reported. A malformed variable is a fault even if a flag overrides it.
func lenient[T any](p *parser, form string, parse func(string) (T, error)) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		token, err := ctx.Scan.PopValue("value")
		if err != nil {
			return err
		}
		value, err := parse(fmt.Sprint(token.Value))
		if err != nil {
			p.malformed[ctx.Value] = "must be " + form
			return nil
		}
		target.Set(reflect.ValueOf(value))
		return nil
	}
}

// boolMapper is [lenient] for switches, which need no value.
type boolMapper struct{ *parser }

func (boolMapper) IsBool() bool { return true }

func (m boolMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		target.SetBool(true)
		return nil
	}
	return lenient(m.parser, "true or false", strconv.ParseBool)(ctx, target)
}

// ParseURL reads an absolute http or https URL without query, fragment or user.
func ParseURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err == nil && (parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" || parsed.RawQuery != "" || parsed.Fragment != "" || parsed.User != nil) {
		err = errors.New("must be an absolute URL")
	}
	return parsed, err
}
