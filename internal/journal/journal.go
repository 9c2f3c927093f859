// Package journal keeps Zoom's responses on local disk from their arrival until
// they are safe in Redis.
//
// A refresh token works once, so the response to its use must survive a crash of
// this process, an outage of Redis, and a Redis that lost acknowledged writes.
//
// The package has three parts: the file format (format.go), the index of entries in
// memory (index.go) and the files (directory.go).
package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"tokenprovider/internal/grant"
)

// ErrClosed means that the journal is closed.
var ErrClosed = errors.New("journal closed")

// Entry is a response of Zoom's, and what was spent for it.
type Entry struct {
	ID     grant.ID
	Spent  string // fingerprint of the spent refresh token, or of the spent consent
	Tokens grant.Tokens

	// App and User identify the grant that a consent creates. They are empty for a
	// renewal.
	App, User string
}

// OfConsent reports whether a consent was spent: an authorization code, or a refresh
// token with which the user was registered.
func (e Entry) OfConsent() bool { return e.User != "" }

// key identifies an entry: there is at most one response to what was spent.
func (e Entry) key() string { return string(e.ID) + " " + e.Spent }

// Journal is the journal of one process. It is safe for concurrent use.
//
// Durability: when [Journal.Add] returns nil, the entry is synced to disk and is in
// Entries after any crash. Entries that are added at the same time share one sync.
// After an error the entry may or may not be on disk; it is in Entries if it was
// written, and its commit is harmless in either case.
//
// Commits: [Journal.MarkCommitted] changes memory only. After a crash all entries are
// uncommitted again, and the next process commits them again, which a commit by
// predecessor permits. A committed entry is retained for a while, because Redis can
// lose acknowledged writes.
//
// Repetition: Add with the same ID and Spent replaces the entry and makes it
// uncommitted; MarkCommitted and Close may be repeated.
//
// Clock: the ages of files are measured with this process's clock. Issued and
// Expires are stored as they are given.
//
// Locks: mu comes before index.mu. The disk is used under mu only, so MarkCommitted,
// Entries, Pending and Collect never wait for it.
type Journal struct {
	format    format
	index     index
	retention time.Duration

	mu        sync.Mutex
	directory directory
	next      *batch // entries that are written and await the next sync
	syncing   bool
	err       error // of the first failed write or sync; permanent
	closed    bool
	idle      chan struct{} // closed when no sync runs
}

// batch is entries that share a sync.
type batch struct {
	written bool          // has an entry
	done    chan struct{} // closed when err is set
	err     error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open opens the journal in a directory, which it creates if needed, and reads the
// entries of earlier processes. A committed entry is retained for at least retention.
// It returns [ErrLocked] if another process has it open.
func Open(path string, cipher Cipher, retention time.Duration) (*Journal, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("creating the journal's directory: %w", err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	j := &Journal{
		format: format{cipher}, retention: retention, directory: directory{path: path, lock: lock},
		next: newBatch(), idle: make(chan struct{}),
	}
	close(j.idle)
	if err := j.read(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return j, nil
}

// Read returns the entries in a directory, oldest first, and whether a process has
// it open. It changes nothing. Some of the entries may be committed already.
func Read(path string, cipher Cipher) (entries []Entry, running bool, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, false, fmt.Errorf("reading the journal: %w", err)
	}
	if running, err = isLocked(path); err != nil {
		return nil, false, err
	}
	j := &Journal{format: format{cipher}, directory: directory{path: path}}
	if err := j.read(); err != nil {
		return nil, running, err
	}
	return j.Entries(), running, nil
}

func (j *Journal) read() error {
	return j.directory.read(func(name string, content []byte) error {
		entries, err := j.format.decode(content)
		for _, e := range entries {
			j.index.add(name, e)
		}
		return err
	})
}

// Add writes an entry, and returns when it is synced to disk. If ctx ends first, Add
// returns its error, and the sync continues. An error of the disk is permanent: each
// later Add returns it.
func (j *Journal) Add(ctx context.Context, e Entry) error {
	line, err := j.format.encode(e)
	if err != nil {
		return err
	}
	b, err := j.write(line, e)
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("syncing the journal: %w", ctx.Err())
	}
}

// write writes an entry and returns the batch with which it is synced.
func (j *Journal) write(line []byte, e Entry) (*batch, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return nil, ErrClosed
	case j.err != nil:
		return nil, j.err
	}
	f, err := j.currentLocked()
	if err != nil {
		return nil, err
	}
	if _, err := f.handle.Write(line); err != nil {
		j.err = fmt.Errorf("writing the journal: %w", err)
		return nil, j.err
	}
	j.index.add(f.name, e)
	b := j.next
	b.written = true
	if !j.syncing {
		j.syncing, j.idle = true, make(chan struct{})
		go j.sync(f)
	}
	return b, nil
}

// sync syncs a file until no entry awaits it. The file is not rotated meanwhile.
func (j *Journal) sync(f *file) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.next.written {
		b := j.next
		j.next = newBatch()
		j.mu.Unlock()
		err := f.handle.Sync()
		j.mu.Lock()
		if err != nil && j.err == nil {
			j.err = fmt.Errorf("syncing the journal: %w", err)
		}
		b.err = j.err
		close(b.done)
	}
	j.syncing = false
	close(j.idle)
}

// currentLocked returns the file to write to. Once a minute that is a new one, and
// obsolete files are removed.
func (j *Journal) currentLocked() (*file, error) {
	if f := j.directory.current(); f != nil && (j.syncing || time.Since(f.created) < writeTime) {
		return f, nil
	}
	f, err := j.directory.create()
	if err != nil {
		return nil, err
	}
	return f, j.removeLocked(func(old *file) bool {
		return old != f && time.Since(old.created) >= writeTime+j.retention
	})
}

// removeLocked removes the files that are old and have no uncommitted entry.
func (j *Journal) removeLocked(isOld func(*file) bool) error {
	return j.directory.remove(func(f *file) bool {
		if !isOld(f) || !j.index.isCommitted(f.name) {
			return false
		}
		j.index.remove(f.name)
		return true
	})
}

// MarkCommitted records that an entry needs no commit: it is in Redis, or invalid.
// An unknown entry is ignored.
func (j *Journal) MarkCommitted(id grant.ID, spent string) {
	j.index.markCommitted(Entry{ID: id, Spent: spent}.key())
}

// Entries returns all entries, committed or not, oldest first.
func (j *Journal) Entries() []Entry { return j.index.entries() }

// CountUncommitted returns the number of uncommitted entries.
func (j *Journal) CountUncommitted() int {
	pending, _, _ := j.index.count()
	return pending
}

// Close waits for the sync that is running, removes the files whose entries are all
// committed, and unlocks the directory. Uncommitted entries remain for the next
// process. Add returns [ErrClosed] from then on.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	idle := j.idle
	j.mu.Unlock()
	<-idle
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.removeLocked(func(*file) bool { return true })
	return errors.Join(err, j.directory.close())
}
