// Package backup is the file that a backup of all grants is kept in: JSON lines,
// of which each grant's is sealed as a whole by the keyset, so that the file says
// how many grants there are, and their ids, and nothing else.
//
// The first line names the backup and the key that has sealed it, the last one is a
// sealed count and digest of the lines between: a file that was cut off, or that
// lacks a line, is refused. Each line is bound to its backup.
package backup

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
)

// Header is the first line.
type Header struct {
	Backup  string    `json:"backup"` // a name of its own
	Version int       `json:"version"`
	Time    time.Time `json:"time"` // when it was begun
	Key     uint32    `json:"key"`  // of the keyset, that has sealed it
}

const version = 1

// line is a grant's, or the last one.
type line struct {
	Grant  grant.ID `json:"grant,omitempty"`
	End    bool     `json:"end,omitempty"`
	Sealed []byte   `json:"sealed"`
}

// end is what the last line has sealed.
type end struct {
	Grants int    `json:"grants"`
	Digest string `json:"digest"` // SHA-256 of the lines between, in hex
}

func place(h Header) string { return "backup " + h.Backup }

// Writer writes a backup.
type Writer struct {
	Header Header

	w      io.Writer
	keyset *seal.Keyset
	grants int
	digest hash.Hash
}

// NewWriter writes the first line. The keyset must stay as it is meanwhile.
func NewWriter(w io.Writer, keyset *seal.Keyset) (*Writer, error) {
	b := &Writer{
		Header: Header{rand.Text(), version, time.Now().UTC().Truncate(time.Second), keyset.Primary()},
		w:      w, keyset: keyset, digest: sha256.New(),
	}
	text, err := json.Marshal(b.Header)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(append(text, '\n'))
	return b, err
}

// Add writes grants.
func (b *Writer) Write(dumped []store.BackupRecord) error {
	for _, d := range dumped {
		sealed, err := b.keyset.Encrypt([]byte(d.Text.Reveal()), place(b.Header), string(d.ID))
		if err != nil {
			return err
		}
		text, err := json.Marshal(line{Grant: d.ID, Sealed: sealed})
		if err != nil {
			return err
		}
		text = append(text, '\n')
		_, _ = b.digest.Write(text)
		if _, err := b.w.Write(text); err != nil {
			return err
		}
		b.grants++
	}
	return nil
}

// Grants returns how many have been written.
func (b *Writer) Count() int { return b.grants }

// End writes the last line.
func (b *Writer) Close() error {
	plain, err := json.Marshal(end{b.grants, hex.EncodeToString(b.digest.Sum(nil))})
	if err != nil {
		return err
	}
	sealed, err := b.keyset.Encrypt(plain, place(b.Header), "end")
	if err != nil {
		return err
	}
	text, err := json.Marshal(line{End: true, Sealed: sealed})
	if err != nil {
		return err
	}
	_, err = b.w.Write(append(text, '\n'))
	return err
}

// ErrKeyset means: no key of the keyset opens the backup.
var ErrKeyset = errors.New("no key of the keyset opens the backup: put back the keyset of its time, or enable the key")

// ErrDamaged means: something is missing in the backup, or was changed.
var ErrDamaged = errors.New("the backup is not whole")

// Read reads a backup and calls each with its grants, some at a time; each may be
// nil, to see whether the backup is whole. Only after it has returned nil is that
// certain. It returns how many grants there are.
func Read(r io.Reader, keyset *seal.Keyset, each func(Header, []store.BackupRecord) error) (h Header, grants int, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &h) != nil || h.Backup == "" {
		return h, 0, fmt.Errorf("%w: its first line is not a backup's", ErrDamaged)
	}
	if h.Version != version {
		return h, 0, fmt.Errorf("the backup is of version %d, and this program reads version %d", h.Version, version)
	}
	digest := sha256.New()
	var some []store.BackupRecord
	flush := func() error {
		if each == nil || len(some) == 0 {
			some = some[:0]
			return nil
		}
		err := each(h, some)
		some = some[:0]
		return err
	}
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return h, grants, fmt.Errorf("%w: line %d cannot be read", ErrDamaged, grants+2)
		}
		field := string(l.Grant)
		if l.End {
			field = "end"
		}
		plain, err := keyset.Decrypt(l.Sealed, place(h), field)
		switch {
		case err != nil && grants == 0:
			return h, grants, ErrKeyset
		case err != nil:
			return h, grants, fmt.Errorf("%w: line %d does not open", ErrDamaged, grants+2)
		case l.End:
			var last end
			if json.Unmarshal(plain, &last) != nil || last.Grants != grants || last.Digest != hex.EncodeToString(digest.Sum(nil)) {
				return h, grants, fmt.Errorf("%w: lines are missing, or in another order", ErrDamaged)
			}
			return h, grants, flush()
		}
		_, _ = digest.Write(lines.Bytes())
		_, _ = digest.Write([]byte{'\n'})
		grants++
		some = append(some, store.BackupRecord{ID: l.Grant, Text: secret.New(string(plain))})
		if len(some) == 100 {
			if err := flush(); err != nil {
				return h, grants, err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return h, grants, err
	}
	return h, grants, fmt.Errorf("%w: it was cut off after %d grants", ErrDamaged, grants)
}
