package journal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

// Cipher encrypts entries; see [seal.Keyset].
type Cipher interface {
	Encrypt(plain []byte, record, field string) ([]byte, error)
	Decrypt(encrypted []byte, record, field string) ([]byte, error)
}

// format is the file format: one entry per line, as base64 of encrypted JSON.
type format struct{ cipher Cipher }

// The associated data of each entry's encryption.
const (
	record = "journal"
	field  = "entry"
)

// plainEntry is an entry before encryption.
type plainEntry struct {
	ID      grant.ID  `json:"id"`
	Spent   string    `json:"spent"`
	Access  string    `json:"access"`
	Refresh string    `json:"refresh"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	App     string    `json:"app,omitempty"`
	User    string    `json:"user,omitempty"`
}

// encode returns an entry as a line of a file.
func (f format) encode(e Entry) ([]byte, error) {
	plain, err := json.Marshal(plainEntry{
		e.ID, e.Spent, e.Tokens.Access.Reveal(), e.Tokens.Refresh.Reveal(), e.Tokens.Issued, e.Tokens.Expires, e.App, e.User,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a journal entry: %w", err)
	}
	encrypted, err := f.cipher.Encrypt(plain, record, field)
	if err != nil {
		return nil, fmt.Errorf("encrypting a journal entry: %w", err)
	}
	return append(base64.StdEncoding.AppendEncode(nil, encrypted), '\n'), nil
}

// decode returns the entries of a file's content. It skips a truncated last line,
// whose Add did not return.
func (f format) decode(content []byte) ([]Entry, error) {
	var entries []Entry
	for line := range bytes.Lines(content) {
		text, complete := bytes.CutSuffix(line, []byte("\n"))
		if !complete {
			continue
		}
		e, err := f.decodeLine(text)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (f format) decodeLine(line []byte) (Entry, error) {
	encrypted, err := base64.StdEncoding.DecodeString(string(line))
	if err != nil {
		return Entry{}, errors.New("damaged entry")
	}
	plain, err := f.cipher.Decrypt(encrypted, record, field)
	if err != nil {
		return Entry{}, err
	}
	var p plainEntry
	if err := json.Unmarshal(plain, &p); err != nil {
		return Entry{}, errors.New("entry of an unknown version")
	}
	return Entry{p.ID, p.Spent, grant.Tokens{
		Access: secret.New(p.Access), Refresh: secret.New(p.Refresh), Issued: p.Issued, Expires: p.Expires,
	}, p.App, p.User}, nil
}
