// Package settings reads a program's settings into its documented struct: from
// flags and from the environment, where a flag wins. Secrets may also come from
// a file that the setting's _FILE twin names.
//
// All faults are reported together, each in one line that names the setting and
// never its value. [Parse] is the machine; groups.go holds the settings that
// programs share.
//
// The struct's tags are kong's, and one of its own: needed:"hint" marks a
// setting that must be given, and says how.
package settings

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

// ParseCommand is [Parse] for a program of several commands. It also answers
// which was asked for, as kong writes it: "keyset create <file>".
func ParseCommand(program, about string, target any, args []string, stdout io.Writer) (command string, err error) {
	p := &parser{faults: map[string]string{}}
	type exit struct{}
	defer func() { // kong ends the process after --help, unless its exit does not return
		if fault := recover(); fault != nil {
			if _, ours := fault.(exit); !ours {
				panic(fault)
			}
			err = ErrDone
		}
	}()
	model, err := kong.New(target,
		kong.Name(program), kong.Description(about), kong.Writers(stdout, stdout),
		kong.Exit(func(int) { panic(exit{}) }),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
		kong.Vars{"version": program + " " + Version()},
		kong.TypeMapper(reflect.TypeFor[time.Duration](), lenient(p, "a duration, such as 30s or 5m", time.ParseDuration)),
		kong.TypeMapper(reflect.TypeFor[*url.URL](), lenient(p, "an absolute URL, such as https://example.com", ParseURL)),
		kong.TypeMapper(reflect.TypeFor[int](), lenient(p, "a whole number", strconv.Atoi)),
		kong.TypeMapper(reflect.TypeFor[bool](), boolMapper{p}),
	)
	if err != nil {
		return "", fmt.Errorf("declaring settings: %w", err)
	}
	asked, err := model.Parse(args)
	if err != nil {
		return "", Faults{err.Error() + " (see --help)"}
	}
	flags := map[string]*kong.Flag{}
	for _, flag := range model.Model.Flags {
		flags[flag.Name] = flag
	}
	for _, flag := range model.Model.Flags {
		p.check(flag, flags[flag.Name+"-file"])
	}
	if checker, ok := target.(Checker); ok {
		checker.Check(func(setting, text string) { p.fault(setting, text) })
	}
	if len(p.faults) == 0 {
		return asked.Command(), nil
	}
	var faults Faults
	for setting, text := range p.faults {
		faults = append(faults, setting+": "+text)
	}
	slices.Sort(faults)
	return "", faults
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

type parser struct{ faults map[string]string } // setting -> text

// fault keeps the first that is said of a setting.
func (p *parser) fault(setting, text string) {
	if _, known := p.faults[setting]; !known {
		p.faults[setting] = text
	}
}

// check looks at one setting after everything has been read.
func (p *parser) check(flag, twin *kong.Flag) {
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
	if hint := flag.Tag.Get("needed"); hint != "" && flag.Target.IsZero() {
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
	if len(v.Tag.Envs) > 0 {
		return v.Tag.Envs[0]
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
		setting := settingName(ctx.Value)
		value, err := parse(fmt.Sprint(token.Value))
		if err != nil {
			p.fault(setting, "not "+want)
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
