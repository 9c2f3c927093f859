package bulkimport

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"tokenprovider/internal/seal"
)

// State records the completed lines in a file, each by a fingerprint of its content. So
// lines may be moved, added and corrected between two runs. It is safe for concurrent
// use.
type State struct {
	file *os.File

	mu   sync.Mutex
	done map[string]bool
}

// OpenState opens the file, and creates it if it does not exist. It locks the file:
// a second process gets an error.
func OpenState(path string) (*State, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another import uses this file", path), file.Close())
	}
	s := &State{file: file, done: map[string]bool{}}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		s.done[strings.TrimSpace(lines.Text())] = true
	}
	if err := lines.Err(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}

// Close closes the file, and removes it if no line is completed.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.done) > 0 {
		return s.file.Close()
	}
	return errors.Join(os.Remove(s.file.Name()), s.file.Close())
}

func fingerprint(l Line) string {
	return seal.Fingerprint("import\x00"+l.App+"\x00"+l.User, l.Refresh.Reveal())
}

func (s *State) has(l Line) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done[fingerprint(l)]
}

// add records a line as completed. It does not sync: a line that a crash of the
// machine loses is sent again.
func (s *State) add(l Line) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	mark := fingerprint(l)
	s.done[mark] = true
	_, err := s.file.WriteString("\n" + mark) // the newline isolates a line that a crash truncated
	return err
}
