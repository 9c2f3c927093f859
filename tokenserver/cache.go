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

// Grants reads what a callback needs, within some seconds whatever its context;
// see [store.Store.ReadServingRecord].
type Grants interface {
	ReadServingRecord(ctx context.Context, id grant.ID) (grant.ServingRecord, error)
}

// Cache keeps opened records in memory, ready to be served, and drops each as
// soon as it is told that the record has changed: it is a [store.ChangeListener].
//
// A record that was read while every change is told is trusted until its change
// is. When changes may be missed, nothing in the cache is trusted: the next use
// of a record reads it again. Only when Redis cannot be read is it served as it
// is, while its token is good; no renewal can have begun then, as its first step
// is to write to Redis.
type Cache struct {
	grants  Grants
	log     *zap.Logger
	metrics *cacheMetrics
	records *otter.Cache[key, *record]
	loader  otter.LoaderFunc[key, *record]

	era    atomic.Int64 // a time during which every change is told; 0: not now
	eras   int64        // that there were
	outage outage       // nothing is read
	slow   outage       // nothing is read that can be done without
	good   atomic.Int64 // until when the longest-lived token is good, in ms
}

// key is a grant's ID, in a form that is found without following a pointer.
type key [26]byte

func keyOf(id grant.ID) (k key) {
	copy(k[:], id)
	return k
}

// record is a grant, ready to be served. Nobody changes it. What is looked at
// lies together: where records are many, the time goes into reaching them.
type record struct {
	grant.ServingRecord
	era    int64                   // in which it was read
	keys   [2]grant.CallbackSecret // of Serving, where they are so few
	handed atomic.Int64            // when its token was handed out last, in ns, to a tenth of a second
}

// handOut notes that the token is handed out now.
func (r *record) handOut(now time.Time) {
	const grain = 100 * time.Millisecond // so that not every request writes
	if at := now.UnixNano(); at-r.handed.Load() > int64(grain) {
		r.handed.Store(at)
	}
}

// verifyTime is how long a read may take that can be done without.
const verifyTime = 200 * time.Millisecond

// NewCache returns a cache of at most size records, in front of grants. It does
// no I/O; until [Cache.Synced] is called nothing in it is trusted.
func NewCache(grants Grants, size int, log *zap.Logger) (*Cache, error) {
	c := &Cache{grants: grants, log: log}
	c.loader = func(ctx context.Context, k key) (*record, error) { return c.read(ctx, grant.ID(k[:])) }
	records, err := otter.New(&otter.Options[key, *record]{
		MaximumSize: size,
		// Never by itself: asked for with Refresh, it replaces a record in place.
		RefreshCalculator: otter.RefreshWriting[key, *record](1<<63 - 1),
		Logger:            &otter.NoopLogger{}, // whoever asks is told
	})
	if err != nil {
		return nil, fmt.Errorf("making the cache: %w", err)
	}
	c.records = records
	return c, nil
}

// get returns a grant's record. It is fresh if it was read for this very call.
func (c *Cache) get(ctx context.Context, id grant.ID) (r *record, fresh bool, err error) {
	r, cached := c.records.GetIfPresent(keyOf(id))
	switch {
	case cached && r.era != 0 && r.era == c.era.Load():
		return r, false, nil
	case cached:
		return c.verify(ctx, id, r)
	case c.outage.on(time.Now()):
		return nil, false, store.ErrUnavailable
	}
	c.metrics.read(missed)
	r, err = c.records.Get(ctx, keyOf(id), c.loader)
	if errors.Is(err, otter.ErrNotFound) {
		err = grant.ErrNotFound
	}
	return r, true, err
}

// verify reads again a record that is not to be trusted, and makes do with it if
// Redis cannot be read.
func (c *Cache) verify(ctx context.Context, id grant.ID, r *record) (*record, bool, error) {
	if now := time.Now(); c.outage.on(now) || c.slow.on(now) {
		c.metrics.madeDo()
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
		c.slow.begin(time.Now())
	}
	c.metrics.madeDo()
	return r, false, nil
}

// again reads a record past the cache.
func (c *Cache) again(ctx context.Context, id grant.ID) (*record, error) {
	if c.outage.on(time.Now()) {
		return nil, store.ErrUnavailable
	}
	c.metrics.read(otherSecret)
	return c.read(ctx, id)
}

// read reads a record from Redis.
func (c *Cache) read(ctx context.Context, id grant.ID) (*record, error) {
	era := c.era.Load()
	serving, err := c.grants.ReadServingRecord(ctx, id)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		c.reached()
		return nil, errors.Join(otter.ErrNotFound, err)
	case errors.Is(err, store.ErrUnavailable):
		c.outage.begin(time.Now())
		return nil, err
	case err != nil:
		return nil, err
	}
	c.reached()
	good := serving.Expires.Add(-grant.MinTTL).UnixMilli()
	for {
		longest := c.good.Load()
		if good <= longest || c.good.CompareAndSwap(longest, good) {
			break
		}
	}
	return newRecord(serving, era), nil
}

// reached says that Redis can be read.
func (c *Cache) reached() {
	c.outage.end()
	c.slow.end()
}

func newRecord(serving grant.ServingRecord, era int64) *record {
	r := &record{ServingRecord: serving, era: era}
	if n := len(serving.Secrets); n <= len(r.keys) {
		copy(r.keys[:], serving.Secrets)
		r.Secrets = r.keys[:n]
	}
	return r
}

// HasLiveTokens reports whether there is a credential that can be served without Redis.
func (c *Cache) HasLiveTokens() bool { return time.Now().UnixMilli() < c.good.Load() }

// Synced implements [store.ChangeListener].
func (c *Cache) Synced() {
	c.reached()
	c.eras++
	c.era.Store(c.eras)
	c.log.Info("following the changes of grants")
}

// Invalidate implements [store.ChangeListener].
func (c *Cache) Invalidate(id grant.ID) {
	if dropped, cached := c.records.Invalidate(keyOf(id)); cached {
		c.metrics.dropped(c.grants, id, dropped)
	}
}

// Desynced implements [store.ChangeListener].
func (c *Cache) Desynced(why error) {
	if errors.Is(why, store.ErrNoReply) {
		c.outage.begin(time.Now())
	}
	if c.era.Swap(0) != 0 {
		c.log.Warn("changes of grants may be missed: every record is read again before it is served", zap.Error(why))
	}
}

// outage remembers that Redis could not be read, or took too long, so that not every
// request has to find out. During one, a single request a second tries.
type outage struct{ next atomic.Int64 } // when to try again, in ns; 0: no outage

const retryOutage = time.Second

func (o *outage) begin(now time.Time) { o.next.Store(now.Add(retryOutage).UnixNano()) }
func (o *outage) end()                { o.next.Store(0) }

// on reports whether Redis is to be left alone. It returns false to whoever is
// to try.
func (o *outage) on(now time.Time) bool {
	next := o.next.Load()
	if next == 0 {
		return false
	}
	return now.UnixNano() < next || !o.next.CompareAndSwap(next, now.Add(retryOutage).UnixNano())
}
