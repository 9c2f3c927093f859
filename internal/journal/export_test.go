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
	last := j.files[len(j.files)-1]
	if err := last.handle.Close(); err != nil {
		t.Fatal(err)
	}
	last.handle = handle
}
