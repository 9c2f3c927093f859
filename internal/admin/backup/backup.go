// Package backup reads and writes the file of a backup of all grants.
//
// The file has JSON lines. The first line is a [Header]. Each grant is a line, encrypted
// as a whole with the keyset, so that the file shows only the number and the ids of the
// grants. The last line is the encrypted number and digest of the lines between, so that
// a truncated or changed file is rejected. The associated data of each line names the
// backup: a line of another backup cannot be decrypted.
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

// Header is the first line. It is not encrypted.
type Header struct {
	Backup  string    `json:"backup"` // random name
	Version int       `json:"version"`
	Time    time.Time `json:"time"` // of the start, in UTC
	Key     uint32    `json:"key"`  // id of the key that encrypted it
}

const (
	version   = 1
	batchSize = 100
)

// line is a grant, or the end.
type line struct {
	Grant     grant.ID `json:"grant,omitempty"`
	End       bool     `json:"end,omitempty"`
	Encrypted []byte   `json:"encrypted"`
}

// end is the content of the last line.
type end struct {
	Grants int    `json:"grants"`
	Digest string `json:"digest"` // SHA-256 of the lines of the grants, in hex
}

// place returns the associated data that binds a line to its backup.
func place(h Header) string { return "backup " + h.Backup }

// Writer writes a backup.
type Writer struct {
	Header Header

	w      io.Writer
	keyset *seal.Keyset
	grants int
	digest hash.Hash
}

// NewWriter writes the header. The primary key of the keyset must not change until
// Close.
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

// Write writes a line per grant.
func (b *Writer) Write(records []store.BackupRecord) error {
	for _, r := range records {
		encrypted, err := b.keyset.Encrypt([]byte(r.Text.Reveal()), place(b.Header), string(r.ID))
		if err != nil {
			return err
		}
		text, err := json.Marshal(line{Grant: r.ID, Encrypted: encrypted})
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

// Count returns the number of written grants.
func (b *Writer) Count() int { return b.grants }

// Close writes the last line. It does not close the underlying writer.
func (b *Writer) Close() error {
	plain, err := json.Marshal(end{b.grants, hex.EncodeToString(b.digest.Sum(nil))})
	if err != nil {
		return err
	}
	encrypted, err := b.keyset.Encrypt(plain, place(b.Header), "end")
	if err != nil {
		return err
	}
	text, err := json.Marshal(line{End: true, Encrypted: encrypted})
	if err != nil {
		return err
	}
	_, err = b.w.Write(append(text, '\n'))
	return err
}

// ErrKeyset means that no key of the keyset decrypts the backup.
var ErrKeyset = errors.New("no key of the keyset decrypts the backup: restore the keyset of its time, or enable the key")

// ErrDamaged means that lines of the backup are missing or changed.
var ErrDamaged = errors.New("the backup is incomplete or damaged")

// Read reads a backup, and calls each with its grants in batches. It returns the number
// of grants. The backup is known to be complete only once Read has returned without an
// error, so a caller checks it first with a nil each.
func Read(r io.Reader, keyset *seal.Keyset, each func(Header, []store.BackupRecord) error) (h Header, grants int, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &h) != nil || h.Backup == "" {
		return h, 0, fmt.Errorf("%w: the first line is no header", ErrDamaged)
	}
	if h.Version != version {
		return h, 0, fmt.Errorf("the backup has version %d; this program reads version %d", h.Version, version)
	}
	digest := sha256.New()
	var batch []store.BackupRecord
	flush := func() error {
		if each == nil || len(batch) == 0 {
			batch = batch[:0]
			return nil
		}
		err := each(h, batch)
		batch = batch[:0]
		return err
	}
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return h, grants, fmt.Errorf("%w: line %d is not JSON", ErrDamaged, grants+2)
		}
		field := string(l.Grant)
		if l.End {
			field = "end"
		}
		plain, err := keyset.Decrypt(l.Encrypted, place(h), field)
		switch {
		case err != nil && grants == 0:
			return h, grants, ErrKeyset
		case err != nil:
			return h, grants, fmt.Errorf("%w: line %d cannot be decrypted", ErrDamaged, grants+2)
		case l.End:
			var last end
			if json.Unmarshal(plain, &last) != nil || last.Grants != grants || last.Digest != hex.EncodeToString(digest.Sum(nil)) {
				return h, grants, fmt.Errorf("%w: lines are missing, or their order changed", ErrDamaged)
			}
			return h, grants, flush()
		}
		_, _ = digest.Write(lines.Bytes())
		_, _ = digest.Write([]byte{'\n'})
		grants++
		batch = append(batch, store.BackupRecord{ID: l.Grant, Text: secret.New(string(plain))})
		if len(batch) == batchSize {
			if err := flush(); err != nil {
				return h, grants, err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return h, grants, err
	}
	return h, grants, fmt.Errorf("%w: the file ends after %d grants", ErrDamaged, grants)
}
