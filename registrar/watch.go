package registrar

import (
	"context"
	"errors"
	"sync"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// How changes reach watchers: every script that changes a record appends what the
// API shows of the change to its shard's stream in Redis. A watcher has a position
// in each stream, which is also its resume token, and reads on from there. So a slow
// watcher holds up nothing in this process, and any replica can continue a watch.
// A stream keeps 4,096 changes. Each entry names the one before it, so a watcher
// detects that entries were dropped.

const (
	watchPoll = 200 * time.Millisecond // between two reads of the streams' heads
	watchIdle = 30 * time.Second       // without a message, after which the position is sent
	watchPage = 100                    // changes per read
)

// errStopping means that the process is ending.
var errStopping = errors.New("registrar is stopping")

// heads caches the ends of the streams of changes for all watchers.
type heads struct {
	mu     sync.Mutex
	read   time.Time
	latest *store.Position
}

// EndWatches ends every watch at a position from which the caller can continue at
// another replica.
func (u *Users) EndWatches() { u.stop.Do(func() { close(u.stopped) }) }

// latest returns the ends of the streams, at most watchPoll old.
func (u *Users) latest(ctx context.Context) (*store.Position, error) {
	u.heads.mu.Lock()
	defer u.heads.mu.Unlock()
	if u.heads.latest != nil && time.Since(u.heads.read) < watchPoll {
		return u.heads.latest, nil
	}
	latest, err := u.store.ReadHeads(ctx)
	if err != nil {
		return nil, err
	}
	u.heads.latest, u.heads.read = latest, time.Now()
	return latest, nil
}

// Watch sends changes until ctx ends, [Users.EndWatches] is called, or send fails.
func (u *Users) Watch(ctx context.Context, r *registrarv1.WatchUsersRequest, send func(*registrarv1.WatchUsersResponse) error) error {
	w := &watcher{Users: u, transmit: send, state: fromState(r.GetState())}
	if token := r.GetResumeToken(); token != "" {
		position, ok := store.ParsePosition(token)
		if !ok {
			return &fieldError{field: "resume_token", fault: "must be the resume_token of an earlier message"}
		}
		w.position = position
	} else {
		position, err := u.store.ReadHeads(ctx) // not the cached heads: the caller may have read newer state
		if err != nil {
			return err
		}
		w.position = position
	}
	if err := w.send(&registrarv1.WatchUsersResponse{}); err != nil {
		return err
	}
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		if err := w.catchUp(ctx); err != nil {
			return err
		}
		if time.Since(w.sent) > watchIdle {
			if err := w.send(&registrarv1.WatchUsersResponse{}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-u.stopped:
			return errStopping
		case <-tick.C:
		}
	}
}

// watcher is one watch.
type watcher struct {
	*Users
	transmit func(*registrarv1.WatchUsersResponse) error
	state    grant.State // "": all
	position *store.Position
	sent     time.Time // when the last message was sent
}

func (w *watcher) send(m *registrarv1.WatchUsersResponse) error {
	m.ResumeToken = w.position.Token()
	w.sent = time.Now()
	return w.transmit(m)
}

// catchUp sends all changes up to the heads.
func (w *watcher) catchUp(ctx context.Context) error {
	latest, err := w.latest(ctx)
	if err != nil {
		return err
	}
	for shard := range latest {
		for w.position[shard].Before(latest[shard]) {
			n, err := w.sendPage(ctx, shard)
			if err != nil {
				return err
			}
			if n == 0 { // Redis has lost entries since the heads were read
				break
			}
		}
	}
	return nil
}

// sendPage sends the next changes of a shard and returns how many it read.
func (w *watcher) sendPage(ctx context.Context, shard int) (n int, err error) {
	events, err := w.store.ReadChanges(ctx, shard, w.position[shard], watchPage)
	if err != nil {
		return 0, err
	}
	ids := make([]grant.ID, 0, len(events))
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	grants, err := w.store.ByID(ctx, ids)
	if err != nil {
		return 0, err
	}
	current := make(map[grant.ID]grant.Grant, len(grants))
	for _, g := range grants {
		current[g.ID] = g
	}
	for _, e := range events {
		w.position[shard] = e.StreamID
		if m := w.message(e, current); m != nil {
			if err := w.send(m); err != nil {
				return 0, err
			}
		}
	}
	return len(events), nil
}

// message returns the message for a change, or nil if this watcher does not get it.
func (w *watcher) message(e store.Event, current map[grant.ID]grant.Grant) *registrarv1.WatchUsersResponse {
	if e.Removed {
		if w.state != "" && w.state != grant.StateDeleting {
			return nil
		}
		return &registrarv1.WatchUsersResponse{Removed: true, User: &registrarv1.User{UserId: e.User, ZoomApp: e.App}}
	}
	g, known := current[e.ID]
	if !known || w.state != "" && g.State != w.state { // a later entry reports it
		return nil
	}
	return &registrarv1.WatchUsersResponse{User: toUser(g)}
}
