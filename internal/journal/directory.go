package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// ErrLocked means that another process uses the directory.
var ErrLocked = errors.New("journal directory in use by another process")

const (
	suffix    = ".journal"
	writeTime = time.Minute // a file is written to for this long
)

// directory is the files of a journal. It is not safe for concurrent use.
type directory struct {
	path  string
	lock  *os.File
	files []*file // oldest first; only the last one may be open for writing
}

type file struct {
	name    string
	created time.Time // by this process's clock; of an earlier process's file: when it was read
	handle  *os.File  // nil: not open for writing
}

// Lock keeps every process from opening the journal in a directory until unlock is
// called. It returns [ErrLocked] if one has it open.
func Lock(path string) (unlock func(), err error) {
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

func lockDirectory(path string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator names the directory
	if err != nil {
		return nil, fmt.Errorf("locking the journal: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(ErrLocked, lock.Close())
	}
	return lock, nil
}

// isLocked reports whether a process has a directory open.
func isLocked(path string) (bool, error) {
	lock, err := os.Open(filepath.Join(path, "lock")) //nolint:gosec // the operator names the directory
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the journal's lock: %w", err)
	}
	locked := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
	if err := lock.Close(); err != nil {
		return false, fmt.Errorf("reading the journal's lock: %w", err)
	}
	return locked, nil
}

// read reads the files of earlier processes, oldest first.
func (d *directory) read(found func(name string, content []byte) error) error {
	paths, err := filepath.Glob(filepath.Join(d.path, "*"+suffix))
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	slices.Sort(paths)
	for _, path := range paths {
		name := filepath.Base(path)
		content, err := os.ReadFile(path) //nolint:gosec // in the journal's directory
		if errors.Is(err, os.ErrNotExist) {
			continue // removed by the process that has the directory open
		}
		if err == nil {
			err = found(name, content)
		}
		if err != nil {
			return fmt.Errorf("reading the journal, %s: %w", name, err)
		}
		d.files = append(d.files, &file{name: name, created: time.Now()})
	}
	return nil
}

// current returns the file to write to, or nil if a new one has to be created.
func (d *directory) current() *file {
	if n := len(d.files); n > 0 && d.files[n-1].handle != nil {
		return d.files[n-1]
	}
	return nil
}

// create creates the next file. Its name survives a crash of the machine.
func (d *directory) create() (*file, error) {
	now := time.Now()
	f := &file{name: now.UTC().Format("20060102T150405.000000000") + suffix, created: now}
	var err error
	f.handle, err = os.OpenFile(filepath.Join(d.path, f.name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating a journal file: %w", err)
	}
	if err := d.sync(); err != nil {
		return nil, errors.Join(err, f.handle.Close())
	}
	d.files = append(d.files, f)
	return f, nil
}

// sync makes the names of the files durable.
func (d *directory) sync() error {
	handle, err := os.Open(d.path)
	if err == nil {
		err = errors.Join(handle.Sync(), handle.Close())
	}
	if err != nil {
		return fmt.Errorf("syncing the journal's directory: %w", err)
	}
	return nil
}

// remove removes the files for which isObsolete returns true, and tries each of
// them even if another fails.
func (d *directory) remove(isObsolete func(*file) bool) error {
	var errs []error
	d.files = slices.DeleteFunc(d.files, func(f *file) bool {
		if !isObsolete(f) {
			return false
		}
		errs = append(errs, f.close(), os.Remove(filepath.Join(d.path, f.name)))
		return true
	})
	return errors.Join(errs...)
}

// close closes all files and unlocks the directory.
func (d *directory) close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.close())
	}
	return errors.Join(append(errs, d.lock.Close())...)
}

func (f *file) close() error {
	if f.handle == nil {
		return nil
	}
	err := f.handle.Close()
	f.handle = nil
	return err
}
