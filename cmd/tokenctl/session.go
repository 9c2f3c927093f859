package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/term"

	"tokenprovider/internal/config"
)

// session has the streams of a command.
type session struct {
	stdin          *os.File
	stdout, stderr io.Writer
	json           bool
}

// say prints a line of text output; not with --output json.
func (s *session) say(format string, values ...any) {
	if !s.json {
		_, _ = fmt.Fprintf(s.stdout, format+"\n", values...)
	}
}

// object prints a result as a line of JSON; only with --output json.
func (s *session) object(value any) error {
	if !s.json {
		return nil
	}
	encoder := json.NewEncoder(s.stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// table prints aligned rows of text output, at each flush. Long lists flush by
// themselves.
type table struct {
	writer *tabwriter.Writer
	head   []string
	rows   int
}

func (s *session) table(head ...string) *table {
	writer := io.Discard
	if !s.json {
		writer = s.stdout
	}
	return &table{writer: tabwriter.NewWriter(writer, 0, 0, 2, ' ', 0), head: head}
}

func (t *table) row(cells ...string) {
	if t.rows == 0 && len(t.head) > 0 {
		_, _ = fmt.Fprintln(t.writer, strings.Join(t.head, "\t"))
	}
	t.rows++
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	_, _ = fmt.Fprintln(t.writer, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	if t.rows%1000 == 0 {
		t.flush()
	}
}

func (t *table) flush() { _ = t.writer.Flush() }

// printable replaces what would control the terminal: callers choose user ids.
func printable(text string) string {
	if text == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, text)
}

// ago returns the distance of a time from now, for text output.
func ago(t time.Time) string {
	switch d := time.Until(t); {
	case t.IsZero():
		return ""
	case d > 0:
		return "in " + short(d)
	default:
		return short(-d) + " ago"
	}
}

// short returns a duration in one unit.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// count returns "1 finding" or "2 findings".
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// adviseIfExists adds advice to the error of a file that exists.
func adviseIfExists(err error) error {
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: choose another name; no file is overwritten", err)
	}
	return err
}

// moment returns a time and its distance from now.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05") + " UTC (" + ago(t) + ")"
}

// confirmed is the flag of commands whose effects cannot be reverted.
type confirmed struct {
	Yes bool `help:"No confirmation prompt."`
}

// confirm prompts at the terminal. Without a terminal, --yes is required.
func (c confirmed) confirm(ctx context.Context, s *session, what string) error {
	if c.Yes {
		return nil
	}
	if !term.IsTerminal(int(s.stdin.Fd())) {
		return config.Faults{"--yes: is required without a terminal: " + what}
	}
	_, _ = fmt.Fprintf(s.stderr, "%s\nType yes to continue: ", what)
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.stdin).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("no changes made: %w", ctx.Err())
	case text := <-typed:
		if text != "yes" {
			return errors.New("no changes made")
		}
		return nil
	}
}

// progress reports the progress of long work on standard error: as a bar on a
// terminal, or else as a line every ten seconds. It is safe for concurrent use.
type progress struct {
	w       io.Writer
	bar     bool
	what    string
	started time.Time

	mu      sync.Mutex
	printed time.Time
}

func (s *session) progress(what string) *progress {
	p := &progress{w: s.stderr, what: what, started: time.Now(), printed: time.Now()}
	if file, ok := s.stderr.(*os.File); ok {
		p.bar = term.IsTerminal(int(file.Fd()))
	}
	return p
}

// at reports that n of all are done. all is 0 if it is unknown.
func (p *progress) at(n, all int) {
	now := time.Now()
	every := 10 * time.Second
	if p.bar {
		every = 100 * time.Millisecond
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.printed) < every {
		return
	}
	p.printed = now
	p.print(n, all)
}

func (p *progress) print(n, all int) {
	text := fmt.Sprintf("%s: %d", p.what, n)
	if all > 0 {
		text = fmt.Sprintf("%s: %d of %d", p.what, n, all)
		if took := time.Since(p.started); n > 0 && n < all {
			text += ", " + short(time.Duration(float64(took)/float64(n)*float64(all-n))) + " left"
		}
	}
	if !p.bar {
		_, _ = fmt.Fprintln(p.w, text)
		return
	}
	const width = 30
	full := 0
	if all > 0 {
		full = min(width, width*n/all)
	}
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K[%s%s] %s", strings.Repeat("#", full), strings.Repeat(".", width-full), text)
}

// done removes the bar.
func (p *progress) done() {
	if p.bar {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
	}
}
