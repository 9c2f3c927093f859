// Package keyset manages the keyset in a file: it unwraps it with the key of a KMS,
// reloads it when it changes, writes changes, and re-encrypts the records in Redis
// after another key was promoted. docs/operations.md has the operator's steps.
package keyset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/seal"
)

// File is a keyset and its file.
type File struct {
	content  *reload.Value[[]byte]
	wrapping seal.Wrapping
	keyset   *seal.Keyset
}

// Wrapping returns how keysets are wrapped: with the KMS key of a URI, or not at all
// if it is empty.
func Wrapping(ctx context.Context, kmsURI string) (seal.Wrapping, error) {
	if kmsURI == "" {
		return seal.Wrapping{}, nil
	}
	key, err := OpenKMS(ctx, kmsURI)
	return seal.Wrapping{KMS: key}, err
}

// Open reads a keyset from its file; see [Wrapping]. The error quotes neither.
func Open(ctx context.Context, path, kmsURI string) (*File, error) {
	wrapping, err := Wrapping(ctx, kmsURI)
	if err != nil {
		return nil, err
	}
	content, err := reload.New(func(read reload.Read) ([]byte, error) { return read(path) })
	if err != nil {
		var cause *os.PathError
		if errors.As(err, &cause) {
			return nil, fmt.Errorf("the file cannot be read: %w", cause.Err)
		}
		return nil, errors.New("the file cannot be read")
	}
	keyset, err := wrapping.Parse(content.Get())
	if err != nil {
		return nil, err
	}
	return &File{content, wrapping, keyset}, nil
}

// Keyset returns the keyset, which changes with its file while [File.Follow] runs.
func (f *File) Keyset() *seal.Keyset { return f.keyset }

// errUndecryptable means that the new keyset lacks the current primary key.
var errUndecryptable = errors.New("it does not decrypt what the current keyset encrypts")

// Follow reloads the keyset when its file changes, until ctx ends. It keeps the
// current keyset if the new one is invalid or does not decrypt what the current one
// encrypts, and tries again at each interval, because the KMS may be unavailable.
func (f *File) Follow(ctx context.Context, every time.Duration, log *zap.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	pending, logged := false, false // of the file's latest change
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, err := f.content.Check()
		if changed {
			pending, logged = true, false
		}
		if err == nil && pending {
			err = f.replace()
		}
		switch {
		case err != nil && (!logged || !pending):
			log.Error("keyset not reloaded: invalid file; keeping the current keys", zap.Error(err))
			logged = true
		case err == nil && pending:
			pending = false
			log.Info("keyset reloaded", zap.Uint32("primary", f.keyset.Primary()), zap.Int("keys", len(f.keyset.Keys())))
		}
	}
}

// replace replaces the keyset with the content of the file.
func (f *File) replace() error {
	next, err := f.wrapping.Parse(f.content.Get())
	if err != nil {
		return err
	}
	encrypted, err := f.keyset.Encrypt([]byte("x"), "keyset", "test")
	if err != nil {
		return err
	}
	if _, err := next.Decrypt(encrypted, "keyset", "test"); err != nil {
		return errUndecryptable
	}
	f.keyset.Replace(next)
	return nil
}
