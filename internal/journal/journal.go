// Package journal keeps Zoom's answers on local disk from the moment they arrive
// until they are safe in Redis.
//
// A refresh token works once, so its answer must survive whatever happens
// between Zoom and Redis: this process killed, Redis down, Redis restored to a
// moment before the commit. [Journal.Add] returns when an entry is synced to
// disk; [Journal.MarkCommitted] says that its commit is in Redis. A settled entry is
// kept for a while longer, because Redis can forget what it has acknowledged,
// and [Journal.Entries] has all there are, to commit them again. Committing by
// predecessor makes that harmless.
//
// Entries are sealed. They stand one after the other in files of their own
// folder, which a process has for itself alone; entries added at the same time
// share one sync. A cut-off entry at the end of a file was never acknowledged,
// and is passed over.
package journal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

// ErrLocked means that another process has the folder.
var ErrLocked = errors.New("another process has this journal: give each a folder of its own, or stop that one first")

// ErrClosed means that the journal takes nothing more.
var ErrClosed = errors.New("the journal is closed")

// Entry is an answer of Zoom's, and what it is the answer to.
type Entry struct {
	ID     grant.ID
	Spent  string // fingerprint of the refresh token, or of the consent, that was spent
	Tokens grant.Tokens

	// If a consent was spent: whose grant has come of it. Else empty.
	App, User string
}

// OfConsent reports whether the answer is to a user's consent: a code, or a
// refresh token that the user was registered with.
func (e Entry) OfConsent() bool { return e.User != "" }

// Cipher seals entries; see [seal.Keyset].
type Cipher interface {
	Encrypt(plain []byte, record, field string) ([]byte, error)
	Decrypt(sealed []byte, record, field string) ([]byte, error)
}

const (
	suffix  = ".journal"
	segment = time.Minute // how long a file is written to
)

// Journal is safe for concurrent use.
type Journal struct {
	folder string
	seal   Cipher
	keep   time.Duration
	lock   *os.File

	mu      sync.Mutex
	synced  *sync.Cond // broadcast after each sync
	files   []*file    // oldest first; the last one is written to
	pending int        // entries that are not settled
	writing bool       // a sync is under way
	asked   int        // entries added
	done    int        // entries synced
	failed  error      // the disk is of no use any more
	closed  bool
}

// file is a file of entries.
type file struct {
	path    string
	handle  *os.File // nil: read at the start, not written to
	created time.Time
	entries map[string]*stored // by grant and predecessor
	open    int                // entries that are not settled
}

type stored struct {
	Entry
	settled bool
}

// Open opens the journal in a folder, which it makes if need be, and reads what
// an earlier process has left there. A settled entry is kept for at least keep.
// It answers [ErrLocked] if another process has the folder.
func Open(folder string, seal Cipher, keep time.Duration) (*Journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the journal's folder: %w", err)
	}
	lock, err := lockFolder(folder)
	if err != nil {
		return nil, err
	}
	j := &Journal{folder: folder, seal: seal, keep: keep, lock: lock}
	j.synced = sync.NewCond(&j.mu)
	if err := j.read(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return j, nil
}

// Lock keeps every process from opening the journal in a folder, until it is let
// go. It answers [ErrLocked] if one has it.
func Lock(folder string) (unlock func(), err error) {
	lock, err := lockFolder(folder)
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

func lockFolder(folder string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, fmt.Errorf("locking the journal: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(ErrLocked, lock.Close())
	}
	return lock, nil
}

// Read returns the entries that are in a folder, oldest first, and whether a
// process has it at the moment. It changes nothing, so it may be called then too:
// some of the entries are settled already.
func Read(folder string, seal Cipher) (entries []Entry, running bool, err error) {
	if _, err := os.Stat(folder); err != nil {
		return nil, false, fmt.Errorf("reading the journal: %w", err)
	}
	if lock, err := os.Open(filepath.Join(folder, "lock")); err == nil { //nolint:gosec // the operator names the folder
		running = syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
		if err := lock.Close(); err != nil {
			return nil, false, fmt.Errorf("reading the journal: %w", err)
		}
	}
	j := &Journal{folder: folder, seal: seal}
	if err := j.read(); err != nil {
		return nil, running, err
	}
	return j.Entries(), running, nil
}

// read reads the files of an earlier process.
func (j *Journal) read() error {
	paths, err := filepath.Glob(filepath.Join(j.folder, "*"+suffix))
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	slices.Sort(paths)
	for _, path := range paths {
		content, err := os.ReadFile(path) //nolint:gosec // in the journal's folder
		if errors.Is(err, os.ErrNotExist) {
			continue // dropped meanwhile by the process that has it
		}
		if err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		f := &file{path: path, created: time.Now(), entries: map[string]*stored{}}
		for line := range bytes.Lines(content) {
			text, whole := bytes.CutSuffix(line, []byte("\n"))
			if !whole {
				continue // was never acknowledged
			}
			entry, err := j.decode(string(text))
			if err != nil {
				return fmt.Errorf("reading the journal, %s: %w", filepath.Base(path), err)
			}
			f.entries[entry.key()] = &stored{Entry: entry}
		}
		f.open = len(f.entries)
		j.pending += f.open
		j.files = append(j.files, f)
	}
	return nil
}

func (e Entry) key() string { return string(e.ID) + " " + e.Spent }

// wire is an entry before it is sealed.
type wire struct {
	ID      grant.ID  `json:"id"`
	Spent   string    `json:"spent"`
	Access  string    `json:"access"`
	Refresh string    `json:"refresh"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	App     string    `json:"app,omitempty"`
	User    string    `json:"user,omitempty"`
}

const place = "journal"

func (j *Journal) encode(e Entry) ([]byte, error) {
	plain, err := json.Marshal(wire{
		e.ID, e.Spent, e.Tokens.Access.Reveal(), e.Tokens.Refresh.Reveal(), e.Tokens.Issued, e.Tokens.Expires, e.App, e.User,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding an entry: %w", err)
	}
	sealed, err := j.seal.Encrypt(plain, place, "entry")
	if err != nil {
		return nil, err
	}
	return append(base64.StdEncoding.AppendEncode(nil, sealed), '\n'), nil
}

func (j *Journal) decode(line string) (Entry, error) {
	sealed, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		return Entry{}, errors.New("an entry is damaged")
	}
	plain, err := j.seal.Decrypt(sealed, place, "entry")
	if err != nil {
		return Entry{}, err
	}
	var w wire
	if err := json.Unmarshal(plain, &w); err != nil {
		return Entry{}, errors.New("an entry is of another version")
	}
	return Entry{w.ID, w.Spent, grant.Tokens{
		Access: secret.New(w.Access), Refresh: secret.New(w.Refresh), Issued: w.Issued, Expires: w.Expires,
	}, w.App, w.User}, nil
}

// Add returns when the entry is on disk. It never waits for anything but the
// disk. After an error of the disk's it answers that error for good: the caller
// goes on without the journal's protection, and says so.
func (j *Journal) Add(e Entry) error {
	line, err := j.encode(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	current, err := j.currentLocked()
	if err != nil {
		return err
	}
	if _, err := current.handle.Write(line); err != nil {
		j.failed = fmt.Errorf("writing the journal: %w", err)
		return j.failed
	}
	if before := current.entries[e.key()]; before == nil || before.settled {
		current.open++
		j.pending++
	}
	current.entries[e.key()] = &stored{Entry: e}
	j.asked++
	for mine := j.asked; j.done < mine; {
		if j.failed != nil {
			return j.failed
		}
		if j.writing {
			j.synced.Wait() // whoever syncs next takes this entry along
			continue
		}
		j.syncLocked(current)
	}
	return nil
}

// syncLocked syncs all that has been written. Others may write meanwhile.
func (j *Journal) syncLocked(f *file) {
	upTo := j.asked
	j.writing = true
	j.mu.Unlock()
	err := f.handle.Sync()
	j.mu.Lock()
	j.writing = false
	if err != nil {
		j.failed = fmt.Errorf("syncing the journal: %w", err)
	} else {
		j.done = max(j.done, upTo)
	}
	j.synced.Broadcast()
}

// currentLocked is the file that is written to; a new one once a minute.
func (j *Journal) currentLocked() (*file, error) {
	if j.closed {
		return nil, ErrClosed
	}
	if j.failed != nil {
		return nil, j.failed
	}
	if n := len(j.files); n > 0 {
		if last := j.files[n-1]; last.handle != nil && (j.writing || j.done < j.asked || time.Since(last.created) < segment) {
			return last, nil
		}
	}
	now := time.Now()
	f := &file{
		path:    filepath.Join(j.folder, now.UTC().Format("20060102T150405.000000000")+suffix),
		created: now, entries: map[string]*stored{},
	}
	var err error
	f.handle, err = os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing the journal: %w", err)
	}
	if err := syncFolder(j.folder); err != nil { // else a crash may lose the file's name
		return nil, errors.Join(err, f.handle.Close())
	}
	j.files = append(j.files, f)
	return f, j.dropLocked()
}

// dropLocked removes files that hold nothing that may be needed.
func (j *Journal) dropLocked() error {
	var kept []*file
	var errs []error
	for i, f := range j.files {
		last := i == len(j.files)-1
		if last && !j.closed || !f.settled() || !j.closed && time.Since(f.created) < segment+j.keep {
			kept = append(kept, f)
			continue
		}
		errs = append(errs, f.remove())
	}
	j.files = kept
	return errors.Join(errs...)
}

func (f *file) settled() bool { return f.open == 0 }

func (f *file) remove() error {
	var err error
	if f.handle != nil {
		err = f.handle.Close()
	}
	return errors.Join(err, os.Remove(f.path))
}

// MarkCommitted says that an entry needs no commit any more: it is in Redis, or of no
// use.
func (j *Journal) MarkCommitted(id grant.ID, spent string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := Entry{ID: id, Spent: spent}.key()
	for _, f := range j.files {
		if e := f.entries[key]; e != nil && !e.settled {
			e.settled = true
			f.open--
			j.pending--
		}
	}
}

// Entries returns every entry there is, settled or not, oldest first.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []Entry
	for _, f := range j.files {
		for _, e := range f.entries {
			all = append(all, e.Entry)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return a.Tokens.Issued.Compare(b.Tokens.Issued) })
	return all
}

// Pending returns how many entries are not settled.
func (j *Journal) Pending() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pending
}

// Close takes nothing more, removes what is settled and lets go of the folder.
// What is not settled stays for the next process.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	for j.writing {
		j.synced.Wait()
	}
	err := j.dropLocked()
	for _, f := range j.files {
		if f.handle != nil {
			err = errors.Join(err, f.handle.Close())
		}
	}
	return errors.Join(err, j.lock.Close())
}

func syncFolder(folder string) error {
	handle, err := os.Open(folder) //nolint:gosec // the operator names the folder
	if err != nil {
		return fmt.Errorf("syncing the journal's folder: %w", err)
	}
	if err := errors.Join(handle.Sync(), handle.Close()); err != nil {
		return fmt.Errorf("syncing the journal's folder: %w", err)
	}
	return nil
}
