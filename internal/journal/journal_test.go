package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/testkit"
)

func open(t *testing.T, dir string, keyset *seal.Keyset, keep time.Duration) *journal.Journal {
	t.Helper()
	j, err := journal.Open(dir, keyset, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func entry(n int) journal.Entry {
	issued := time.Unix(1_700_000_000+int64(n), 0).UTC()
	return journal.Entry{
		ID: grant.NewID("default", fmt.Sprint("user-", n)), Spent: fmt.Sprint("fingerprint-", n),
		Tokens: grant.Tokens{
			Access: secret.New(fmt.Sprint("plain-access-", n)), Refresh: secret.New(fmt.Sprint("plain-refresh-", n)),
			Issued: issued, Expires: issued.Add(time.Hour),
		},
	}
}

func add(t *testing.T, j *journal.Journal, n int) journal.Entry {
	t.Helper()
	e := entry(n)
	if err := addEntry(t, j, e); err != nil {
		t.Fatal(err)
	}
	return e
}

func addOnly(t *testing.T, j *journal.Journal, n int) error {
	t.Helper()
	return addEntry(t, j, entry(n))
}

func addEntry(t *testing.T, j *journal.Journal, e journal.Entry) error {
	t.Helper()
	return j.Add(t.Context(), e)
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// copyOf returns a copy of the directory as it is on disk, for a process that starts
// after a crash: in this test the crashed one still has its lock.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	other := t.TempDir()
	for _, path := range files(t, dir) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(other, filepath.Base(path)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return other
}

func TestEntriesSurviveACrash(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, time.Minute)
	want := []journal.Entry{add(t, j, 1), add(t, j, 2), add(t, j, 3)}
	j.MarkCommitted(want[1].ID, want[1].Spent)
	if j.CountUncommitted() != 2 {
		t.Errorf("%d pending, want 2", j.CountUncommitted())
	}
	successor := open(t, copyOf(t, dir), keyset, time.Minute)
	// Commits are not on disk: the successor commits the entry again, which is harmless.
	if got := successor.Entries(); !slices.Equal(got, want) || successor.CountUncommitted() != 3 {
		t.Errorf("the successor has %d entries, %d pending", len(got), successor.CountUncommitted())
	}
	if got := j.Entries(); !slices.Equal(got, want) {
		t.Errorf("%d entries, want the committed one too", len(got))
	}
}

func TestEntriesAreEncrypted(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	add(t, open(t, dir, keyset, 0), 1)
	for _, path := range files(t, dir) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) == 0 || bytes.Contains(content, []byte("plain")) {
			t.Error("the file is empty, or shows a token")
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if _, err := journal.Open(copyOf(t, dir), testkit.Keyset(t), 0); !errors.Is(err, seal.ErrDecrypt) {
		t.Errorf("another keyset: %v, want ErrDecrypt", err)
	}
}

func TestTruncatedEntryIsSkipped(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, 0)
	want := []journal.Entry{add(t, j, 1)}
	path := files(t, dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	add(t, j, 2)
	both, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole); cut < len(both); cut += 100 {
		other := t.TempDir()
		if err := os.WriteFile(filepath.Join(other, filepath.Base(path)), both[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := open(t, other, keyset, 0).Entries(); !slices.Equal(got, want) {
			t.Errorf("truncated at %d of %d: %d entries, want 1", cut, len(both), len(got))
		}
	}
	damaged := bytes.Clone(both)
	damaged[10] ^= 1
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, filepath.Base(path)), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(other, keyset, 0); err == nil {
		t.Error("a damaged entry was skipped")
	}
}

func TestOneProcessPerDirectory(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, 0)
	if _, err := journal.Open(dir, keyset, 0); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("a second process: %v, want ErrLocked", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, keyset, 0)
}

func TestCloseKeepsUncommittedEntries(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, time.Hour)
	one, two := add(t, j, 1), add(t, j, 2)
	j.MarkCommitted(one.ID, one.Spent)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := j.Add(t.Context(), entry(3)); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	j = open(t, dir, keyset, time.Hour)
	if got := j.Entries(); !slices.Contains(got, two) {
		t.Error("an uncommitted entry is gone")
	}
	for _, e := range j.Entries() {
		j.MarkCommitted(e.ID, e.Spent)
		j.MarkCommitted(e.ID, e.Spent) // may be repeated
	}
	if j.CountUncommitted() != 0 {
		t.Errorf("%d pending, want 0", j.CountUncommitted())
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("%d files left, all of them committed", len(left))
	}
}

func TestConcurrentEntries(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, 0)
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { add(t, j, i) })
	}
	wg.Wait()
	got := open(t, copyOf(t, dir), keyset, 0).Entries()
	for i := range n {
		if !slices.Contains(got, entry(i)) {
			t.Errorf("entry %d is not on disk", i)
		}
	}
}

func TestDirectoryErrors(t *testing.T) {
	dir := t.TempDir()
	blocked := filepath.Join(dir, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(filepath.Join(blocked, "journal"), testkit.Keyset(t), 0); err == nil {
		t.Error("a directory inside a file was opened")
	}
	gone := filepath.Join(dir, "gone")
	j := open(t, gone, testkit.Keyset(t), 0)
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	if err := j.Add(t.Context(), entry(1)); err == nil {
		t.Error("an entry was acknowledged that is not on disk")
	}
}

func BenchmarkAdd(b *testing.B) {
	keyset := testkit.Keyset(b)
	j, err := journal.Open(b.TempDir(), keyset, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	var n int
	for b.Loop() {
		n++
		e := entry(n)
		if err := j.Add(b.Context(), e); err != nil {
			b.Fatal(err)
		}
		j.MarkCommitted(e.ID, e.Spent)
	}
}
