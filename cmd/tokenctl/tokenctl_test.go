package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"tokenprovider/internal/config"
)

// leaves returns every command, by its words.
func leaves(t *testing.T) map[string]*kong.Node {
	t.Helper()
	model, err := config.Model("tokenctl", &commands{})
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
		if _, checked := target.(config.Checker); !checked {
			for _, flag := range leaf.Flags {
				if len(flag.Envs) > 0 && flag.Name != "keyset-kms-uri" {
					t.Errorf("%s has --%s without a Check", name, flag.Name)
				}
			}
		}
		if name != "check" && name != "keyset create" && !strings.Contains(leaf.Detail, "tokenctl "+name) {
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

// TestDocs compares the documented commands with the commands.
func TestDocs(t *testing.T) {
	text, all := doc(t, "tokenctl.md"), leaves(t)
	for name := range all {
		if !strings.Contains(text, "tokenctl "+name) {
			t.Errorf("docs/tokenctl.md does not know tokenctl %s", name)
		}
	}
	for _, variable := range regexp.MustCompile("`(REGISTRAR_[A-Z_]+)`").FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(all["users list"].Flags, func(f *kong.Flag) bool { return slices.Contains(f.Envs, variable[1]) }) {
			t.Errorf("docs/tokenctl.md names %s, which there is not", variable[1])
		}
	}
}

// line is a documented command line.
type line struct {
	page, text string
	prose      bool // in a sentence, where a command may be named without what it needs
}

// documented returns the command lines of a page: in its blocks, and between
// backticks.
func documented(page, text string) (all []line) {
	add := func(text string, prose bool) {
		for _, found := range regexp.MustCompile(`(?:^|[ (])(?:\S*bin/|/)?tokenctl ([^\n]*)`).FindAllStringSubmatch(text, -1) {
			all = append(all, line{page, found[1], prose})
		}
	}
	rest := regexp.MustCompile("(?ms)^```(sh|console)\n(.*?)^```").ReplaceAllStringFunc(text, func(block string) string {
		kind, body, _ := strings.Cut(strings.TrimPrefix(block, "```"), "\n")
		for text := range strings.Lines(strings.ReplaceAll(body, "\\\n", " ")) {
			if typed, ok := strings.CutPrefix(text, "$ "); ok || kind == "sh" {
				add(typed, false)
			}
		}
		return ""
	})
	rest = regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(rest, "")
	for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(rest, -1) {
		add(strings.ReplaceAll(span[1], "\n", " "), true)
	}
	return all
}

// words are those of a command line that reach the program, with an example for
// each placeholder.
func (l line) words() (words []string) {
	for _, word := range strings.Fields(l.text) {
		if strings.ContainsAny(word[:1], "#|<>&;)=") || word == "…" {
			break
		}
		switch word = strings.TrimRight(word, ");"); word {
		case "KEY", "ID":
			word = "2718281828"
		case "COMMAND":
			word = "doctor"
		}
		words = append(words, word)
	}
	return words
}

// fault says what is wrong with it, by parsing it as the program does.
func (l line) fault(all map[string]*kong.Node) string {
	words := l.words()
	if l.prose {
		if name := strings.Join(words, " "); all[name] != nil || slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(other string) bool {
			return strings.HasPrefix(other, name+" ")
		}) {
			return ""
		}
	}
	// What is wrong with the words has a line of its own; all other faults are
	// settings that are not set here.
	_, err := config.ParseCommand("tokenctl", about, &commands{}, words, io.Discard)
	var faults config.Faults
	if errors.As(err, &faults) {
		for _, fault := range faults {
			if strings.HasSuffix(fault, "(see --help)") || strings.HasPrefix(fault, "<") || strings.HasPrefix(fault, "--") {
				return fault
			}
		}
	}
	return ""
}

// TestDocsCommands: every command line that the docs have is one that tokenctl
// takes, with its arguments and flags.
func TestDocsCommands(t *testing.T) {
	all := leaves(t)
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil || len(pages) < 8 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	seen := map[string]int{}
	for _, path := range append(pages, filepath.Join("..", "..", "README.md")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page := filepath.Base(path)
		for _, one := range documented(page, string(text)) {
			seen[page]++
			if fault := one.fault(all); fault != "" {
				t.Errorf("%s documents tokenctl %s: %s", page, one.text, fault)
			}
		}
	}
	for _, page := range []string{"README.md", "tokenctl.md", "runbooks.md", "operations.md", "deploy.md"} {
		if seen[page] < 2 {
			t.Errorf("%s documents %d commands", page, seen[page])
		}
	}
	for text, wrong := range map[string]bool{
		"keyset rotate keyset.json": true, "keyset disable keyset.json ID": true, "users get": true, "users list --state gone": true,
		"nonsense": true, "users get ann | jq": false, "keyset promote KEY --keyset-file keyset.json  # seals": false, "export - >file": false,
		"users watch --stat": true, "grants due --within soon": true,
	} {
		if got := (line{text: text}).fault(all); (got != "") != wrong {
			t.Errorf("tokenctl %s: %q", text, got)
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

func TestConfirmation(t *testing.T) {
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
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	var faults config.Faults
	if err := (confirmed{}).confirm(t.Context(), &session{stdin: null}, "All is lost."); !errors.As(err, &faults) {
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
	lines.printed = time.Now().Add(-time.Minute)
	lines.at(5, 10)
	if got := said.String(); !strings.HasPrefix(got, "grants: 5 of 10, ") || !strings.HasSuffix(got, " left\n") {
		t.Errorf("a line: %q", got)
	}
	keyboard, screen := terminal(t)
	bar := (&session{stderr: screen}).progress("grants")
	bar.printed = time.Time{}
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
		t.Error("the zero time is printed")
	}
}
