// Package config reads a program's settings into its documented struct: from
// flags and from the environment, where a flag wins. Secrets may also come from
// a file that the setting's _FILE twin names.
//
// All faults are reported together, each in one line that names the setting and
// never its value. [Parse] is the machine; groups.go holds the settings that
// programs share.
//
// The struct's tags are kong's, and one of its own: needed:"hint" marks a
// setting that must be given, and says how.
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

// ErrDone means: --help or --version was asked for and has been answered.
var ErrDone = errors.New("nothing more to do")

// Faults is all that is wrong with the settings, one line each.
type Faults []string

func (f Faults) Error() string { return strings.Join(f, "\n") }

// Checker is implemented by settings that know more about what is right than
// their types tell.
type Checker interface {
	// Check calls fault for each wrong setting, by the name of its variable.
	Check(fault func(setting, text string))
}

// Parse fills the struct that target points to. It answers [Faults], or
// [ErrDone] after --help or --version.
func Parse(program, about string, target any, args []string, stdout io.Writer) error {
	_, err := ParseCommand(program, about, target, args, stdout)
	return err
}

// ParseCommand is [Parse] for a program of several commands: only the settings of
// the one that was asked for count. It returns that command's struct, which is the
// target itself where there are no commands.
func ParseCommand(program, about string, target any, args []string, stdout io.Writer) (command any, err error) {
	p := &parser{faults: map[string]string{}, malformed: map[*kong.Value]string{}}
	type exit struct{}
	defer func() { // kong ends the process after --help, unless its exit does not return
		if fault := recover(); fault != nil {
			if _, ours := fault.(exit); !ours {
				panic(fault)
			}
			err = ErrDone
		}
	}()
	model, err := p.model(program, about, target, kong.Writers(stdout, stdout), kong.Exit(func(int) { panic(exit{}) }))
	if err != nil {
		return nil, err
	}
	asked, err := model.Parse(args)
	if err != nil {
		return nil, Faults{err.Error() + " (see --help)"}
	}
	command = target
	values := slices.Clone(model.Model.Positional)
	if selected := asked.Selected(); selected != nil {
		command = selected.Target.Addr().Interface()
		values = slices.Clone(selected.Positional)
	}
	flags := map[string]*kong.Flag{}
	for _, flag := range asked.Flags() {
		flags[flag.Name] = flag
		values = append(values, flag.Value)
	}
	for _, value := range values {
		if text, wrong := p.malformed[value]; wrong {
			p.fault(settingName(value), text)
		}
	}
	spared, _ := command.(OptionalSettings)
	for _, flag := range asked.Flags() {
		p.check(flag, flags[flag.Name+"-file"], spared)
	}
	if checker, ok := command.(Checker); ok {
		checker.Check(p.fault)
	}
	if len(p.faults) == 0 {
		return command, nil
	}
	var faults Faults
	for setting, text := range p.faults {
		faults = append(faults, setting+": "+text)
	}
	slices.Sort(faults)
	if tolerant, ok := command.(IgnoresSettings); ok {
		tolerant.Tolerate(faults)
		return command, nil
	}
	return nil, faults
}

// OptionalSettings is implemented by commands that can do without settings that others
// need.
type OptionalSettings interface {
	// Spares reports whether a setting need not be given.
	Spares(setting string) bool
}

// IgnoresSettings is implemented by commands that run although settings are wrong.
type IgnoresSettings interface {
	// Tolerate is told what is wrong.
	Tolerate(faults Faults)
}

// Model returns the commands and flags of a program, for shells to complete.
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

// Version returns what --version prints: the module's version and the commit
// that it was built from.
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
	malformed map[*kong.Value]string // of all commands, also those not asked for
}

// fault keeps the first that is said of a setting.
func (p *parser) fault(setting, text string) {
	if _, known := p.faults[setting]; !known {
		p.faults[setting] = text
	}
}

// check looks at one setting after everything has been read.
func (p *parser) check(flag, twin *kong.Flag, spared OptionalSettings) {
	setting := settingName(flag.Value)
	text, isSecret := flag.Target.Addr().Interface().(*secret.Text)
	if isSecret && twin != nil {
		if path := twin.Target.String(); path != "" {
			if !text.IsZero() {
				p.fault(setting, "set here and by "+settingName(twin.Value)+": choose one")
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
	if hint := flag.Tag.Get("needed"); hint != "" && flag.Target.IsZero() && (spared == nil || !spared.Spares(setting)) {
		if twin != nil {
			hint += "; or name a file in " + settingName(twin.Value)
		}
		p.fault(setting, "not set: "+hint)
	}
}

// fileFault says what is wrong with a file without its path, which the setting
// has anyway.
func fileFault(err error) string {
	var cause *os.PathError
	if errors.As(err, &cause) {
		return "the file cannot be read: " + cause.Err.Error()
	}
	return "the file cannot be read"
}

// settingName is the variable of a setting, or its flag if it has none.
func settingName(v *kong.Value) string {
	switch {
	case len(v.Tag.Envs) > 0:
		return v.Tag.Envs[0]
	case v.Flag == nil:
		return "<" + v.Name + ">"
	}
	return "--" + v.Name
}

// lenient maps a value and keeps a fault for later, so that one fault does not
// hide the others. What is malformed is a fault even where a flag overrides it.
func lenient[T any](p *parser, want string, parse func(string) (T, error)) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		token, err := ctx.Scan.PopValue("value")
		if err != nil {
			return err
		}
		value, err := parse(fmt.Sprint(token.Value))
		if err != nil {
			p.malformed[ctx.Value] = "not " + want
			return nil
		}
		target.Set(reflect.ValueOf(value))
		return nil
	}
}

// boolMapper is lenient for switches, which need no value.
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
		err = errors.New("not absolute")
	}
	return parsed, err
}
