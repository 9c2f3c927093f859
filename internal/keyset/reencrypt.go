package keyset

import (
	"context"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/seal"
	"tokenprovider/internal/store"
)

// Store has the encrypted records; see [store.Store].
type Store interface {
	// Reencrypt re-encrypts with the primary key the records that other keys have
	// encrypted. It may be interrupted and repeated.
	Reencrypt(ctx context.Context, perSecond int, progress func(store.ReencryptProgress)) (store.ReencryptProgress, error)
	// ReencryptedBy returns the primary key of the last complete run, 0 if there
	// was none.
	ReencryptedBy(ctx context.Context) (uint32, error)
	// SetReencryptedBy records a complete run.
	SetReencryptedBy(ctx context.Context, id uint32) error
	// LockReencryption locks out other replicas until unlock. ok is false if
	// another one has the lock.
	LockReencryption(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error)
}

const (
	defaultWait      = 2 * time.Minute
	defaultPerSecond = 1000
	lockTTL          = time.Minute
	progressInterval = 10 * time.Second
)

// Reencrypter re-encrypts the records with the primary key after another key was
// promoted. Every replica may run one: a lock lets one work at a time.
type Reencrypter struct {
	Store  Store
	Keyset *seal.Keyset
	Log    *zap.Logger

	// Wait is the time between the promotion of a key and the first record, in
	// which every process must reload the keyset. 0: two minutes.
	Wait time.Duration
	// PerSecond is the maximum rate of re-encrypted grants. 0: 1,000.
	PerSecond int
}

// Run works until ctx ends.
func (r *Reencrypter) Run(ctx context.Context) {
	wait, perSecond := r.Wait, r.PerSecond
	if wait == 0 {
		wait = defaultWait
	}
	if perSecond == 0 {
		perSecond = defaultPerSecond
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
		if err := r.runOnce(ctx, primary, perSecond); err != nil && ctx.Err() == nil {
			r.Log.Warn("re-encryption failed; will be retried", zap.Error(err))
		}
	}
}

// runOnce re-encrypts all records, unless that was done for this primary key or
// another replica does it.
func (r *Reencrypter) runOnce(ctx context.Context, primary uint32, perSecond int) error {
	by, err := r.Store.ReencryptedBy(ctx)
	if err != nil || by == primary {
		return err
	}
	unlock, ok, err := r.Store.LockReencryption(ctx, lockTTL)
	if err != nil || !ok {
		return err
	}
	defer unlock()
	r.Log.Info("new primary key; re-encryption started", zap.Uint32("key", primary))
	logged := time.Now()
	done, err := r.Store.Reencrypt(ctx, perSecond, func(p store.ReencryptProgress) {
		if time.Since(logged) > progressInterval {
			logged = time.Now()
			r.Log.Info("re-encryption in progress", zap.Int("grants", p.Scanned), zap.Int("reencrypted", p.Reencrypted))
		}
	})
	if err != nil {
		return err
	}
	if done.Undecryptable > 0 {
		r.Log.Error("no key of the keyset decrypts some grants; a key may be missing or disabled", zap.Int("grants", done.Undecryptable))
	}
	if r.Keyset.Primary() != primary {
		return nil // promoted meanwhile: Run begins again after its wait
	}
	r.Log.Info("re-encryption complete", zap.Uint32("key", primary), zap.Int("grants", done.Scanned), zap.Int("reencrypted", done.Reencrypted))
	return r.Store.SetReencryptedBy(ctx, primary)
}
