package journal

import (
	"slices"
	"sync"
	"time"
)

// index holds the entries of each file in memory, and which are committed. It does
// no I/O, so its callers never wait for the disk. It is safe for concurrent use.
type index struct {
	mu    sync.Mutex
	files []*indexedFile // oldest first
}

type indexedFile struct {
	name        string
	entries     map[string]*indexedEntry // by Entry.key
	uncommitted int
}

type indexedEntry struct {
	Entry
	committed bool
}

// add adds an uncommitted entry of a file. A second entry with its key replaces it.
func (x *index) add(name string, e Entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.IndexFunc(x.files, func(f *indexedFile) bool { return f.name == name })
	if i < 0 {
		i = len(x.files)
		x.files = append(x.files, &indexedFile{name: name, entries: map[string]*indexedEntry{}})
	}
	f := x.files[i]
	if previous := f.entries[e.key()]; previous == nil || previous.committed {
		f.uncommitted++
	}
	f.entries[e.key()] = &indexedEntry{Entry: e}
}

// markCommitted marks every entry with a key.
func (x *index) markCommitted(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.files {
		if e := f.entries[key]; e != nil && !e.committed {
			e.committed = true
			f.uncommitted--
		}
	}
}

// isCommitted reports whether all entries of a file are committed.
func (x *index) isCommitted(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !slices.ContainsFunc(x.files, func(f *indexedFile) bool { return f.name == name && f.uncommitted > 0 })
}

// remove removes a file's entries.
func (x *index) remove(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.files = slices.DeleteFunc(x.files, func(f *indexedFile) bool { return f.name == name })
}

// entries returns all entries, oldest first.
func (x *index) entries() []Entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []Entry
	for _, f := range x.files {
		for _, e := range f.entries {
			all = append(all, e.Entry)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return a.Tokens.Issued.Compare(b.Tokens.Issued) })
	return all
}

// count returns how many entries there are in each state, and the issue time of the
// oldest uncommitted one. It searches only the oldest file that has one: files are
// in order of time, and the lock is held briefly.
func (x *index) count() (uncommitted, committed int, oldest time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.files {
		uncommitted += f.uncommitted
		committed += len(f.entries) - f.uncommitted
		if !oldest.IsZero() {
			continue
		}
		for _, e := range f.entries {
			if !e.committed && (oldest.IsZero() || e.Tokens.Issued.Before(oldest)) {
				oldest = e.Tokens.Issued
			}
		}
	}
	return uncommitted, committed, oldest
}
