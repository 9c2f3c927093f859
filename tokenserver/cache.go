package tokenserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
)

// Grants reads serving records; see [store.Store.ReadServingRecord].
//
// A read has no effect and may be repeated. It returns within some seconds even
// if ctx has no deadline. It returns [grant.ErrNotFound] if there is no such
// grant, and [store.ErrUnavailable] if Redis cannot be reached. With any other
// error, such as a record that cannot be decrypted, nothing may be served.
type Grants interface {
	ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error)
}

// Cache keeps decrypted records in memory, ready to be served. It is a
// [store.ChangeListener] and safe for concurrent use.
//
// The state of a record follows from two numbers: the epoch in which it was read,
// and the current epoch. An epoch begins with each [Cache.Synced] and ends with
// [Cache.Desynced]; in between, every change is reported.
//
//	verified     The record was read in the current epoch. It is served from
//	             memory. [Cache.Invalidate] makes it absent, Desynced makes it
//	             unverified.
//	unverified   The record was read in an earlier epoch, or there is none now.
//	             Each use revalidates it against Redis. A successful read makes
//	             it verified (unverified still, outside an epoch), a missing
//	             grant makes it absent. If Redis is unavailable, or the read takes
//	             more than [verifyTime], the cached copy is used: no renewal can
//	             have started, since its first step writes to Redis.
//	absent       Each use reads it from Redis, one read for all concurrent uses.
//	             If Redis is unavailable, there is nothing to serve.
//
// A record that was invalidated while it was read is not kept. Whether the token
// of a record may be served is decided in every state by [Lookup].
type Cache struct {
	grants  Grants
	log     *zap.Logger
	metrics *cacheMetrics
	records *otter.Cache[key, *Record]
	loader  otter.LoaderFunc[key, *Record]

	epoch  atomic.Int64 // the current epoch; 0: none, changes may be missed
	epochs int64        // the number of epochs so far
	outage backoff      // during an outage of Redis: no reads
	delay  backoff      // while Redis is slow: no revalidation
	live   atomic.Int64 // when the longest-lived token falls below MinTTL, in ms
}

// key is a grant's ID, in a form that is compared without following a pointer.
type key [26]byte

func keyOf(id grant.ID) (k key) {
	copy(k[:], id)
	return k
}

// Record is a cached grant record. It is immutable, except for the time of its
// last use. Its fields are laid out together: with many records, reaching them in
// memory takes most of the time.
type Record struct {
	grant.ServingRecord
	epoch   int64                   // in which it was read; 0: none
	secrets [2]grant.CallbackSecret // the array behind Secrets, if they fit
	served  atomic.Int64            // when its token was served last, in ns, to a tenth of a second
}

// markServed records that the token is served at now.
func (r *Record) markServed(now time.Time) {
	const grain = 100 * time.Millisecond // bounds the writes to a shared cache line
	if at := now.UnixNano(); at-r.served.Load() > int64(grain) {
		r.served.Store(at)
	}
}

// verifyTime limits a read that revalidates a record.
const verifyTime = 200 * time.Millisecond

// NewCache returns a cache of at most size records, in front of grants. It does
// no I/O. Its records are unverified until [Cache.Synced] is called.
func NewCache(grants Grants, size int, log *zap.Logger) (*Cache, error) {
	c := &Cache{grants: grants, log: log}
	c.loader = func(ctx context.Context, k key) (*Record, error) { return c.read(ctx, grant.ID(k[:])) }
	records, err := otter.New(&otter.Options[key, *Record]{
		MaximumSize: size,
		// Refresh replaces a record in place, and only on request: no record is
		// refreshed because of its age.
		RefreshCalculator: otter.RefreshWriting[key, *Record](1<<63 - 1),
		Logger:            &otter.NoopLogger{}, // callers receive the errors
	})
	if err != nil {
		return nil, fmt.Errorf("making the cache: %w", err)
	}
	c.records = records
	return c, nil
}

// get returns a grant's record. Fresh means that it was read for this call.
func (c *Cache) get(ctx context.Context, id grant.ID) (r *Record, fresh bool, err error) {
	r, cached := c.records.GetIfPresent(keyOf(id))
	switch {
	case cached && r.epoch != 0 && r.epoch == c.epoch.Load():
		return r, false, nil
	case cached:
		return c.verify(ctx, id, r)
	case c.outage.isOn(time.Now()):
		return nil, false, store.ErrUnavailable
	}
	c.metrics.read(missed)
	r, err = c.records.Get(ctx, keyOf(id), c.loader)
	if errors.Is(err, otter.ErrNotFound) {
		err = grant.ErrNotFound
	}
	return r, true, err
}

// verify revalidates a record against Redis, and falls back to the cached copy
// when Redis is unavailable.
func (c *Cache) verify(ctx context.Context, id grant.ID, r *Record) (*Record, bool, error) {
	if now := time.Now(); c.outage.isOn(now) || c.delay.isOn(now) {
		c.metrics.fellBack()
		return r, false, nil
	}
	c.metrics.read(unverified)
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	select {
	case read := <-c.records.Refresh(ctx, keyOf(id), c.loader):
		switch {
		case read.Err == nil:
			return read.Value, true, nil
		case errors.Is(read.Err, otter.ErrNotFound):
			return nil, true, grant.ErrNotFound
		case !errors.Is(read.Err, store.ErrUnavailable):
			return nil, true, read.Err
		}
	case <-ctx.Done():
		c.delay.start(time.Now())
	}
	c.metrics.fellBack()
	return r, false, nil
}

// readThrough reads a record from Redis and leaves the cached one as it is.
func (c *Cache) readThrough(ctx context.Context, id grant.ID) (*Record, error) {
	if c.outage.isOn(time.Now()) {
		return nil, store.ErrUnavailable
	}
	c.metrics.read(otherSecret)
	return c.read(ctx, id)
}

// read reads a record from Redis. It records whether Redis is available.
func (c *Cache) read(ctx context.Context, id grant.ID) (*Record, error) {
	epoch := c.epoch.Load() // before the read: a change after it is reported
	serving, err := c.grants.ReadServingRecord(ctx, id)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		c.endOutage()
		return nil, errors.Join(otter.ErrNotFound, err)
	case errors.Is(err, store.ErrUnavailable):
		c.outage.start(time.Now())
		return nil, err
	case err != nil:
		return nil, err
	}
	c.endOutage()
	until := serving.Expires.Add(-grant.MinTTL).UnixMilli()
	for {
		longest := c.live.Load()
		if until <= longest || c.live.CompareAndSwap(longest, until) {
			break
		}
	}
	return newRecord(serving, epoch), nil
}

// endOutage records that Redis is available and not slow.
func (c *Cache) endOutage() {
	c.outage.end()
	c.delay.end()
}

func newRecord(serving grant.ServingRecord, epoch int64) *Record {
	r := &Record{ServingRecord: serving, epoch: epoch}
	if n := len(serving.Secrets); n <= len(r.secrets) {
		copy(r.secrets[:], serving.Secrets)
		r.Secrets = r.secrets[:n]
	}
	return r
}

// HasLiveTokens reports whether a cached record can be served without Redis.
func (c *Cache) HasLiveTokens() bool { return time.Now().UnixMilli() < c.live.Load() }

// Synced implements [store.ChangeListener]. It begins an epoch.
func (c *Cache) Synced() {
	c.endOutage()
	c.epochs++
	c.epoch.Store(c.epochs)
	c.log.Info("change feed synced; serving records from memory")
}

// Invalidate implements [store.ChangeListener].
func (c *Cache) Invalidate(id grant.ID) {
	if dropped, cached := c.records.Invalidate(keyOf(id)); cached {
		c.metrics.invalidated(c.grants, id, dropped)
	}
}

// Desynced implements [store.ChangeListener]. It ends the epoch.
func (c *Cache) Desynced(why error) {
	if errors.Is(why, store.ErrNoReply) {
		c.outage.start(time.Now())
	}
	if c.epoch.Swap(0) != 0 {
		c.log.Warn("change feed lost; revalidating records", zap.Error(why))
	}
}

// backoff keeps requests from reading Redis after a read has failed or taken too
// long. While it is on, one request a second reads. The zero value is off.
type backoff struct{ next atomic.Int64 } // when the next request reads, in ns; 0: off

const backoffInterval = time.Second

func (b *backoff) start(now time.Time) { b.next.Store(now.Add(backoffInterval).UnixNano()) }
func (b *backoff) end()                { b.next.Store(0) }

// isOn reports whether the caller must not read Redis. While the backoff is on,
// it returns false to one caller a second.
func (b *backoff) isOn(now time.Time) bool {
	next := b.next.Load()
	if next == 0 {
		return false
	}
	return now.UnixNano() < next || !b.next.CompareAndSwap(next, now.Add(backoffInterval).UnixNano())
}
