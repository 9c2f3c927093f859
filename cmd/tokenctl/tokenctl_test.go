package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"tokenprovider/internal/settings"
)

// leaves returns every command, by its words.
func leaves(t *testing.T) map[string]*kong.Node {
	t.Helper()
	model, err := settings.Model("tokenctl", &commands{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*kong.Node{}
	for _, leaf := range model.Leaves(true) {
		var words []string
		for node := leaf; node.Parent != nil; node = node.Parent {
			words = append([]string{node.Name}, words...)
		}
		all[strings.Join(words, " ")] = leaf
	}
	return all
}

func TestEveryCommandIsWhole(t *testing.T) {
	for name, leaf := range leaves(t) {
		target := leaf.Target.Addr().Interface()
		if _, runs := target.(command); !runs {
			t.Errorf("%s does not run", name)
		}
		if leaf.Help == "" {
			t.Errorf("%s: no help", name)
		}
		if _, checked := target.(settings.Checker); !checked {
			for _, flag := range leaf.Flags {
				if len(flag.Envs) > 0 && flag.Name != "keyset-kms-uri" {
					t.Errorf("%s has --%s, and nobody checks it", name, flag.Name)
				}
			}
		}
		if name != "check" && name != "keyset create" && !strings.Contains(leaf.Detail, "tokenctl "+name) && name != "completion" {
			t.Errorf("%s: its help has no example", name)
		}
		if confirms := slices.ContainsFunc(leaf.Flags, func(f *kong.Flag) bool { return f.Name == "yes" }); confirms != slices.Contains(
			[]string{"users deregister", "reconcile", "keyset promote", "keyset disable", "import", "restore"}, name) {
			t.Errorf("%s asks: %v", name, confirms)
		}
	}
}

// doc reads a page of docs/.
func doc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocs holds the pages that tell of commands against the commands.
func TestDocs(t *testing.T) {
	text, commands := doc(t, "tokenctl.md"), leaves(t)
	for name := range commands {
		if !strings.Contains(text, "tokenctl "+name) {
			t.Errorf("docs/tokenctl.md does not know tokenctl %s", name)
		}
	}
	for _, page := range []string{"tokenctl.md", "runbooks.md", "operations.md", "deploy.md"} {
		checkCommands(t, page, commands)
	}
	for _, variable := range regexp.MustCompile("`(REGISTRAR_[A-Z_]+)`").FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(commands["users list"].Flags, func(f *kong.Flag) bool { return slices.Contains(f.Envs, variable[1]) }) {
			t.Errorf("docs/tokenctl.md names %s, which there is not", variable[1])
		}
	}
}

// checkCommands: each command that a page tells of exists, with its flags.
func checkCommands(t *testing.T, page string, commands map[string]*kong.Node) {
	t.Helper()
	told := regexp.MustCompile("(?m)(?:^\\$ |`|^bin/|-- )(?:bin/)?tokenctl ([a-z]+(?: [a-z]+)?)((?: [^\n`|]*)?)").FindAllStringSubmatch(doc(t, page), -1)
	if len(told) == 0 {
		t.Errorf("docs/%s tells of no command", page)
	}
	for _, found := range told {
		name, rest := found[1], found[2]
		leaf := commands[name]
		if leaf == nil {
			first, more, _ := strings.Cut(name, " ")
			leaf, rest = commands[first], " "+more+rest
		}
		if leaf == nil {
			t.Errorf("docs/%s tells of tokenctl %s, which there is not", page, name)
			continue
		}
		for _, flag := range regexp.MustCompile(` --([a-z-]+)`).FindAllStringSubmatch(rest, -1) {
			if flagOf(leaf, "--"+flag[1]) == nil {
				t.Errorf("docs/%s: tokenctl %s has no --%s", page, name, flag[1])
			}
		}
	}
}

// terminal makes a terminal; what is written to the first is typed at the second.
func terminal(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	return keyboard, screen
}

func TestWhatCannotBeTakenBackIsAsked(t *testing.T) {
	ask := func(c confirmed, typed string) (string, error) {
		t.Helper()
		keyboard, screen := terminal(t)
		if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		err := c.confirm(t.Context(), &session{stdin: screen, stdout: &said, stderr: &said}, "All is lost.")
		return said.String(), err
	}
	if said, err := ask(confirmed{}, "yes\n"); err != nil || !strings.Contains(said, "All is lost.\nType yes") {
		t.Errorf("yes: %v, %q", err, said)
	}
	for _, typed := range []string{"no\n", "y\n", "\n"} {
		if _, err := ask(confirmed{}, typed); err == nil {
			t.Errorf("%q is taken for yes", typed)
		}
	}
	if said, err := ask(confirmed{Yes: true}, ""); err != nil || said != "" {
		t.Errorf("--yes: %v, %q", err, said)
	}
	nobody, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nobody.Close() }()
	var faults settings.Faults
	if err := (confirmed{}).confirm(t.Context(), &session{stdin: nobody}, "All is lost."); !errors.As(err, &faults) {
		t.Errorf("without a terminal: %v", err)
	}
	// Ctrl-C while it asks.
	_, screen := terminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (confirmed{}).confirm(ctx, &session{stdin: screen, stderr: &bytes.Buffer{}}, "All is lost."); !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %v", err)
	}
}

func TestProgress(t *testing.T) {
	var said bytes.Buffer
	lines := (&session{stderr: &said}).progress("grants")
	lines.at(1, 10)
	if said.Len() > 0 {
		t.Errorf("too soon: %q", said.String())
	}
	lines.told = time.Now().Add(-time.Minute)
	lines.at(5, 10)
	if got := said.String(); !strings.HasPrefix(got, "grants: 5 of 10, ") || !strings.HasSuffix(got, " left\n") {
		t.Errorf("a line: %q", got)
	}
	keyboard, screen := terminal(t)
	bar := (&session{stderr: screen}).progress("grants")
	bar.told = time.Time{}
	bar.at(5, 10)
	shown := make([]byte, 200)
	n, err := keyboard.Read(shown)
	if err != nil || !strings.Contains(string(shown[:n]), "[###############...............] grants: 5 of 10") {
		t.Errorf("a bar: %q, %v", shown[:n], err)
	}
}

func TestNothingMovesTheCursor(t *testing.T) {
	if got := printable("ann\x1b[2J\r\nbob\u202e ü"); got != "ann·[2J··bob· ü" {
		t.Errorf("%q", got)
	}
	if got := printable(""); got != "-" {
		t.Errorf("%q", got)
	}
}

func TestTimesForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		5*time.Second + time.Millisecond: "in 5 s", 90*time.Minute + time.Second: "in 90 min", 30*time.Hour + time.Second: "in 30 h",
		-3 * time.Minute: "3 min ago", -72 * time.Hour: "3 d ago",
	} {
		if got := ago(time.Now().Add(d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	if ago(time.Time{}) != "" || moment(time.Time{}) != "" {
		t.Error("no time is told as one")
	}
}
