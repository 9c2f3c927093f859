package journal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tokenprovider/internal/journal"
	"tokenprovider/internal/testkit"
)

// TestFileRotation: a file is written to for one minute.
func TestFileRotation(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	synctest.Test(t, func(t *testing.T) {
		j := open(t, dir, keyset, time.Hour)
		want := []journal.Entry{add(t, j, 1)}
		time.Sleep(time.Minute - time.Nanosecond)
		want = append(want, add(t, j, 2))
		if n := len(files(t, dir)); n != 1 {
			t.Errorf("%d files just before a minute has passed, want 1", n)
		}
		time.Sleep(time.Nanosecond)
		want = append(want, add(t, j, 3))
		if n := len(files(t, dir)); n != 2 {
			t.Errorf("%d files after a minute, want 2", n)
		}
		if got := j.Entries(); !slices.Equal(got, want) {
			t.Errorf("%d entries, want 3", len(got))
		}
		if got := open(t, copyOf(t, dir), keyset, 0).Entries(); !slices.Equal(got, want) {
			t.Errorf("%d entries on disk, want 3", len(got))
		}
	})
}

// TestFileRemoval: a file is removed when all its entries are committed and it is
// older than a minute plus the retention, not before.
func TestFileRemoval(t *testing.T) {
	const keep = 5 * time.Minute
	keyset := testkit.Keyset(t)
	for name, c := range map[string]struct {
		age       time.Duration // of the first file at the rotation
		committed bool
		want      bool // the first file is removed
	}{
		"before the retention ends":                {time.Minute + keep - time.Nanosecond, true, false},
		"when the retention ends":                  {time.Minute + keep, true, true},
		"uncommitted, long after":                  {10 * keep, false, false},
		"committed, after the minute of its write": {keep, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				j := open(t, dir, keyset, keep)
				e := add(t, j, 1)
				first := files(t, dir)[0]
				if c.committed {
					j.MarkCommitted(e.ID, e.Spent)
				}
				time.Sleep(c.age)
				add(t, j, 2)
				if removed := !slices.Contains(files(t, dir), first); removed != c.want {
					t.Errorf("removed: %v, want %v", removed, c.want)
				}
				if listed := slices.Contains(j.Entries(), e); listed == c.want {
					t.Errorf("listed: %v, want %v", listed, !c.want)
				}
				if j.CountUncommitted() != len(j.Entries())-map[bool]int{true: 1}[c.committed && !c.want] {
					t.Errorf("%d of %d pending", j.CountUncommitted(), len(j.Entries()))
				}
			})
		})
	}
}

// TestFileOfAnEarlierProcess is read, counted, never written to, and removed when
// its entries are committed.
func TestFileOfAnEarlierProcess(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, time.Hour)
	one, two := add(t, j, 1), add(t, j, 2)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	old := files(t, dir)[0]
	j = open(t, dir, keyset, time.Hour)
	add(t, j, 3)
	if after, err := os.ReadFile(old); err != nil || !slices.Equal(before, after) || len(files(t, dir)) != 2 {
		t.Errorf("the earlier file changed, or %v", err)
	}
	j.MarkCommitted(one.ID, one.Spent)
	if err := j.Close(); err != nil { // with an entry that remains in a file that is not open
		t.Error(err)
	}
	j = open(t, dir, keyset, time.Hour)
	if !slices.Contains(j.Entries(), two) || j.CountUncommitted() != 3 {
		t.Errorf("%d pending, want all 3: commits are not on disk", j.CountUncommitted())
	}
	for _, e := range j.Entries() {
		j.MarkCommitted(e.ID, e.Spent)
	}
	if err := j.Close(); err != nil || len(files(t, dir)) != 0 {
		t.Errorf("%d files left, %v", len(files(t, dir)), err)
	}
}

// TestDiskErrors: an entry that is not written, or not synced, is not acknowledged.
func TestDiskErrors(t *testing.T) {
	reader, pipe, err := os.Pipe() // takes writes, and cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	closed, err := os.Open(os.DevNull) // takes no writes
	if err != nil {
		t.Fatal(err)
	}
	for name, handle := range map[string]*os.File{"sync": pipe, "write": closed} {
		t.Run(name, func(t *testing.T) {
			j := open(t, t.TempDir(), testkit.Keyset(t), 0)
			add(t, j, 1)
			journal.ReplaceHandle(t, j, handle)
			for range 2 { // the error stays
				if err := addOnly(t, j, 2); err == nil || errors.Is(err, journal.ErrClosed) {
					t.Errorf("adding an entry: %v, want the disk's error", err)
				}
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDirectoryLock(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	unlock, err := journal.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(dir, keyset, 0); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("opening a locked journal: %v, want ErrLocked", err)
	}
	if _, err := journal.Lock(dir); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("locking it twice: %v, want ErrLocked", err)
	}
	unlock()
	unlock, err = journal.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := journal.Lock(filepath.Join(dir, "absent")); err == nil || errors.Is(err, journal.ErrLocked) {
		t.Errorf("locking an absent directory: %v", err)
	}
	unreadable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(unreadable, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(unreadable, keyset, 0); err == nil {
		t.Error("a file was opened as a directory")
	}
}

// TestRead: the entries of a directory can be read while a process uses it.
func TestRead(t *testing.T) {
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, time.Hour)
	want := []journal.Entry{add(t, j, 2), add(t, j, 1)}
	slices.Reverse(want) // oldest first
	got, running, err := journal.Read(dir, keyset)
	if err != nil || !running || !slices.Equal(got, want) {
		t.Errorf("%d entries, running: %v, %v", len(got), running, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	got, running, err = journal.Read(dir, keyset)
	if err != nil || running || !slices.Equal(got, want) {
		t.Errorf("after the end: %d entries, running: %v, %v", len(got), running, err)
	}
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if got, running, err = journal.Read(dir, keyset); err != nil || running || len(got) != 2 {
		t.Errorf("without a lock file: %d entries, running: %v, %v", len(got), running, err)
	}
	if _, _, err := journal.Read(dir, testkit.Keyset(t)); err == nil {
		t.Error("another keyset decrypts the entries")
	}
	if _, _, err := journal.Read(filepath.Join(dir, "absent"), keyset); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent directory: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "directory.journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := journal.Read(dir, keyset); err == nil {
		t.Error("a file that cannot be read is skipped")
	}
}

func TestEntryOfConsent(t *testing.T) {
	e := entry(1)
	if e.OfConsent() {
		t.Error("a renewal is taken for a consent")
	}
	e.App, e.User = "default", "ann"
	if !e.OfConsent() {
		t.Error("a consent is taken for a renewal")
	}
	dir, keyset := t.TempDir(), testkit.Keyset(t)
	j := open(t, dir, keyset, 0)
	if err := addEntry(t, j, e); err != nil {
		t.Fatal(err)
	}
	if got := open(t, copyOf(t, dir), keyset, 0).Entries(); len(got) != 1 || got[0] != e {
		t.Errorf("%d entries; the consent's user is lost", len(got))
	}
}

// TestAddReturnsWithItsContext: a disk that hangs does not block the caller, and the
// entry is indexed.
func TestAddReturnsWithItsContext(t *testing.T) {
	j := open(t, t.TempDir(), testkit.Keyset(t), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n := range 20 { // select picks at random among what is ready
		if err := j.Add(ctx, entry(n)); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if j.CountUncommitted() != 20 {
		t.Errorf("%d pending, want 20", j.CountUncommitted())
	}
}
