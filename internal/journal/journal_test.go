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

func open(t *testing.T, folder string, keyset *seal.Keyset, keep time.Duration) *journal.Journal {
	t.Helper()
	j, err := journal.Open(folder, keyset, keep)
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
	return j.Add(e)
}

func files(t *testing.T, folder string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(folder, "*.journal"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// copyOf is the folder as the disk has it, for a process that takes over after a
// crash: the crashed one still has its lock here.
func copyOf(t *testing.T, folder string) string {
	t.Helper()
	other := t.TempDir()
	for _, path := range files(t, folder) {
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

func TestEntriesOutliveACrash(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, folder, keyset, time.Minute)
	want := []journal.Entry{add(t, j, 1), add(t, j, 2), add(t, j, 3)}
	j.MarkCommitted(want[1].ID, want[1].Spent)
	if j.Pending() != 2 {
		t.Errorf("%d pending, want 2", j.Pending())
	}
	heir := open(t, copyOf(t, folder), keyset, time.Minute)
	// What is settled is not on disk: the heir commits it again, which is harmless.
	if got := heir.Entries(); !slices.Equal(got, want) || heir.Pending() != 3 {
		t.Errorf("the heir has %d entries, %d pending", len(got), heir.Pending())
	}
	if got := j.Entries(); !slices.Equal(got, want) {
		t.Errorf("%d entries, want the settled one too", len(got))
	}
}

func TestNothingIsInClear(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	add(t, open(t, folder, keyset, 0), 1)
	for _, path := range files(t, folder) {
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
	if _, err := journal.Open(copyOf(t, folder), testkit.Keyset(t), 0); !errors.Is(err, seal.ErrDecrypt) {
		t.Errorf("another keyset: %v, want ErrOpen", err)
	}
}

func TestCutOffEntryIsPassedOver(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, folder, keyset, 0)
	want := []journal.Entry{add(t, j, 1)}
	path := files(t, folder)[0]
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
			t.Errorf("cut off at %d of %d: %d entries, want 1", cut, len(both), len(got))
		}
	}
	damaged := bytes.Clone(both)
	damaged[10] ^= 1
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, filepath.Base(path)), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(other, keyset, 0); err == nil {
		t.Error("a damaged entry is passed over in silence")
	}
}

func TestOneProcessAFolder(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, folder, keyset, 0)
	if _, err := journal.Open(folder, keyset, 0); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("a second process: %v, want ErrLocked", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, folder, keyset, 0)
}

func TestCloseLeavesOnlyWhatIsNotSettled(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, folder, keyset, time.Hour)
	one, two := add(t, j, 1), add(t, j, 2)
	j.MarkCommitted(one.ID, one.Spent)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := j.Add(entry(3)); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	j = open(t, folder, keyset, time.Hour)
	if got := j.Entries(); !slices.Contains(got, two) {
		t.Error("an entry that was not settled is gone")
	}
	for _, e := range j.Entries() {
		j.MarkCommitted(e.ID, e.Spent)
		j.MarkCommitted(e.ID, e.Spent) // twice is once
	}
	if j.Pending() != 0 {
		t.Errorf("%d pending, want 0", j.Pending())
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, folder); len(left) != 0 {
		t.Errorf("%d files left after a clean end", len(left))
	}
}

func TestConcurrentEntriesAreAllKept(t *testing.T) {
	folder, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, folder, keyset, 0)
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { add(t, j, i) })
	}
	wg.Wait()
	got := open(t, copyOf(t, folder), keyset, 0).Entries()
	for i := range n {
		if !slices.Contains(got, entry(i)) {
			t.Errorf("entry %d is not on disk", i)
		}
	}
}

func TestDiskThatCannotBeWritten(t *testing.T) {
	folder := t.TempDir()
	blocked := filepath.Join(folder, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(filepath.Join(blocked, "journal"), testkit.Keyset(t), 0); err == nil {
		t.Error("a folder inside a file")
	}
	gone := filepath.Join(folder, "gone")
	j := open(t, gone, testkit.Keyset(t), 0)
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	if err := j.Add(entry(1)); err == nil {
		t.Error("an entry was acknowledged that is nowhere")
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
		if err := j.Add(e); err != nil {
			b.Fatal(err)
		}
		j.MarkCommitted(e.ID, e.Spent)
	}
}
