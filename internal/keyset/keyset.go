// Package keyset keeps the keyset in use in step with its file, and what is stored
// in step with the keyset: a new key is read without a restart, and once it seals,
// the rest is sealed again by it, in the background. docs/operations.md tells how
// an operator replaces a key.
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
	"tokenprovider/internal/store"
)

// File is a keyset and the file that it is from.
type File struct {
	content  *reload.Value[[]byte]
	wrapping seal.Wrapping
	keyset   *seal.Keyset
}

// Wrapping returns how a keyset is wrapped: by the key of a KMS that the URI
// names, or in clear if it is empty.
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

// Keyset returns the keyset, which changes with its file while [File.Subscribe] runs.
func (f *File) Keyset() *seal.Keyset { return f.keyset }

// errUseless means: with the new keyset, nothing could be opened any more that is
// sealed now.
var errUseless = errors.New("it does not open what the present one seals: add the new key to it, promote it, and disable the old one last")

// Follow reads the keyset again when its file changes, until ctx ends. One that
// would not open what is sealed now is not taken.
func (f *File) Follow(ctx context.Context, every time.Duration, log *zap.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	stale, told := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, err := f.content.Check()
		if changed {
			stale, told = true, false
		}
		if err == nil && stale {
			err = f.replace()
		}
		switch {
		case err != nil && (!told || !stale):
			log.Error("the keyset's file has changed and is of no use: the keys that were read before stay in use", zap.Error(err))
			told = true
		case err == nil && stale:
			stale = false
			log.Info("the keyset was read again", zap.Uint32("seals", f.keyset.Primary()), zap.Int("keys", len(f.keyset.Keys())))
		}
	}
}

func (f *File) replace() error {
	next, err := f.wrapping.Parse(f.content.Get())
	if err != nil {
		return err
	}
	sealed, err := f.keyset.Encrypt([]byte("x"), "keyset", "test")
	if err != nil {
		return err
	}
	if _, err := next.Decrypt(sealed, "keyset", "test"); err != nil {
		return errUseless
	}
	f.keyset.Replace(next)
	return nil
}

// Store is what holds sealed values; see [store.Store].
type Store interface {
	Reencrypt(ctx context.Context, perSecond int, tell func(store.ReencryptProgress)) (store.ReencryptProgress, error)
	ReencryptedBy(ctx context.Context) (uint32, error)
	SetReencryptedBy(ctx context.Context, id uint32) error
	LockReencryption(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error)
}

// Reencrypter seals again what other keys than the present one have sealed. Every
// replica may run one: one of them works.
type Reencrypter struct {
	Store  Store
	Keyset *seal.Keyset
	Log    *zap.Logger

	// Wait is how long after a key was promoted the work begins, so that every
	// process has read it by then. 0: 2 minutes.
	Wait time.Duration
	// PerSecond is how many grants a second are sealed again, at most. 0: 1,000.
	PerSecond int
}

// Run works until ctx ends.
func (r *Reencrypter) Run(ctx context.Context) {
	wait, perSecond := r.Wait, r.PerSecond
	if wait == 0 {
		wait = 2 * time.Minute
	}
	if perSecond == 0 {
		perSecond = 1000
	}
	primary, since := r.Keyset.Primary(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait / 4):
		}
		if now := r.Keyset.Primary(); now != primary {
			primary, since = now, time.Now()
		}
		if time.Since(since) < wait {
			continue
		}
		if err := r.turn(ctx, primary, perSecond); err != nil && ctx.Err() == nil {
			r.Log.Warn("sealing again has to wait", zap.Error(err))
		}
	}
}

func (r *Reencrypter) turn(ctx context.Context, primary uint32, perSecond int) error {
	resealed, err := r.Store.ReencryptedBy(ctx)
	if err != nil || resealed == primary {
		return err
	}
	unlock, ok, err := r.Store.LockReencryption(ctx, time.Minute)
	if err != nil || !ok {
		return err
	}
	defer unlock()
	r.Log.Info("another key seals now: sealing again what others have sealed", zap.Uint32("key", primary))
	told := time.Now()
	done, err := r.Store.Reencrypt(ctx, perSecond, func(p store.ReencryptProgress) {
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			r.Log.Info("sealing again", zap.Int("grants", p.Seen), zap.Int("resealed", p.Resealed))
		}
	})
	if err != nil {
		return err
	}
	if done.Broken > 0 {
		r.Log.Error("there are grants that no key of the keyset opens: is a key missing or disabled?", zap.Int("grants", done.Broken))
	}
	if r.Keyset.Primary() != primary {
		return nil // another one meanwhile: the next turn begins anew
	}
	r.Log.Info("everything is sealed by one key", zap.Uint32("key", primary), zap.Int("grants", done.Seen), zap.Int("resealed", done.Resealed))
	return r.Store.SetReencryptedBy(ctx, primary)
}
