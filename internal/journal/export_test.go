package journal

import (
	"os"
	"testing"
)

// ReplaceHandle makes the journal write to another file from now on.
func ReplaceHandle(t *testing.T, j *Journal, handle *os.File) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	f := j.directory.current()
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	f.handle = handle
}
