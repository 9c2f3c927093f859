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

// session is what a command has around it.
type session struct {
	stdin          *os.File
	stdout, stderr io.Writer
	json           bool
}

// say prints a line for people; not where the result is for machines.
func (s *session) say(format string, values ...any) {
	if !s.json {
		_, _ = fmt.Fprintf(s.stdout, format+"\n", values...)
	}
}

// object prints one result for machines, on a line.
func (s *session) object(value any) error {
	if !s.json {
		return nil
	}
	encoder := json.NewEncoder(s.stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// table prints rows for people, aligned. A row is not printed before the next
// flush, so long lists flush now and then.
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

// printable is text that does nothing to a terminal: a user's id is whatever a
// caller has given.
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

// ago says how far a time is from now, for people.
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

// short is a duration as people say it.
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

// count is "1 finding" or "2 findings".
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// adviseIfExists adds advice to the error of a file that exists.
func adviseIfExists(err error) error {
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: choose another name, as no file is ever overwritten", err)
	}
	return err
}

// moment is a time for people who compare it with others.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05") + " UTC (" + ago(t) + ")"
}

// confirmed is a flag of commands that cannot be taken back.
type confirmed struct {
	Yes bool `help:"Do it without asking."`
}

// confirm asks whoever sits at the terminal. Where nobody does, only --yes will
// do.
func (c confirmed) confirm(ctx context.Context, s *session, what string) error {
	if c.Yes {
		return nil
	}
	if !term.IsTerminal(int(s.stdin.Fd())) {
		return config.Faults{"--yes: not given, and there is no terminal to ask at: " + what}
	}
	_, _ = fmt.Fprintf(s.stderr, "%s\nType yes to do it: ", what)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.stdin).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("nothing was done: %w", ctx.Err())
	case text := <-answer:
		if text != "yes" {
			return fmt.Errorf("nothing was done")
		}
		return nil
	}
}

// progress tells how far long work has come, on standard error: as a bar where
// that is a terminal, else a line now and then.
type progress struct {
	w     io.Writer
	bar   bool
	what  string
	begun time.Time

	mu   sync.Mutex
	told time.Time
}

func (s *session) progress(what string) *progress {
	p := &progress{w: s.stderr, what: what, begun: time.Now(), told: time.Now()}
	if file, ok := s.stderr.(*os.File); ok {
		p.bar = term.IsTerminal(int(file.Fd()))
	}
	return p
}

// at tells that n of all is done; all may be 0 if nobody knows. Many may call it.
func (p *progress) at(n, all int) {
	now := time.Now()
	every := 10 * time.Second
	if p.bar {
		every = 100 * time.Millisecond
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.told) < every {
		return
	}
	p.told = now
	p.print(n, all)
}

func (p *progress) print(n, all int) {
	text := fmt.Sprintf("%s: %d", p.what, n)
	if all > 0 {
		text = fmt.Sprintf("%s: %d of %d", p.what, n, all)
		if took := time.Since(p.begun); n > 0 && n < all {
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

// done ends the bar.
func (p *progress) done() {
	if p.bar {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
	}
}
