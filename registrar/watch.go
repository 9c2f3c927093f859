package registrar

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// How a user's changes come to whoever watches: every script that changes a record
// appends to its shard's stream in Redis what is news for the API. A watcher has a
// position in each stream, which is its resume token, and reads on from there. So
// nothing waits in this process for a slow watcher, any replica can go on for
// another, and nothing is lost between them. That a watcher has missed something,
// because a stream keeps 4,096 changes, is seen by each entry naming the one before
// it.

const (
	watchLook = 200 * time.Millisecond // between looks for changes
	watchIdle = 30 * time.Second       // without a message, after which the position is told
	watchPage = 100                    // changes read at once
)

// errStopping: the process is ending.
var errStopping = errors.New("the registrar is stopping")

// heads is where the streams of changes end, looked up once for all watchers.
type heads struct {
	mu      sync.Mutex
	at      time.Time
	latest  *store.Position
	stopped chan struct{} // closed by EndWatches
	once    sync.Once
}

// EndWatches ends every stream of changes, each at a place where its caller can go
// on elsewhere.
func (s *Service) EndWatches() { s.heads.once.Do(func() { close(s.heads.stopped) }) }

// latest returns where the streams of changes end, as it was a moment ago.
func (s *Service) latest(ctx context.Context) (*store.Position, error) {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	if s.heads.latest != nil && time.Since(s.heads.at) < watchLook {
		return s.heads.latest, nil
	}
	latest, err := s.Store.ReadHeads(ctx)
	if err != nil {
		return nil, err
	}
	s.heads.latest, s.heads.at = latest, time.Now()
	return latest, nil
}

// WatchUsers implements the call of the same name.
func (s *Service) WatchUsers(r *registrarv1.WatchUsersRequest, stream grpc.ServerStreamingServer[registrarv1.WatchUsersResponse]) error {
	ctx := stream.Context()
	w := &watcher{Service: s, stream: stream, state: fromState(r.GetState())}
	if token := r.GetResumeToken(); token != "" {
		position, ok := store.ParsePosition(token)
		if !ok {
			return &fieldError{field: "resume_token", fault: "not the resume_token of a message before"}
		}
		w.position = position
	} else {
		position, err := s.Store.ReadHeads(ctx) // not as of a moment ago: what the caller knows is younger
		if err != nil {
			return err
		}
		w.position = position
	}
	if err := w.send(&registrarv1.WatchUsersResponse{}); err != nil {
		return err
	}
	tick := time.NewTicker(watchLook)
	defer tick.Stop()
	for {
		if err := w.catchUp(ctx); err != nil {
			return err
		}
		if time.Since(w.told) > watchIdle {
			if err := w.send(&registrarv1.WatchUsersResponse{}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.heads.stopped:
			return errStopping
		case <-tick.C:
		}
	}
}

// watcher is one call of WatchUsers.
type watcher struct {
	*Service
	stream   grpc.ServerStreamingServer[registrarv1.WatchUsersResponse]
	state    grant.State // "": all
	position *store.Position
	told     time.Time // of the last message
}

func (w *watcher) send(m *registrarv1.WatchUsersResponse) error {
	m.ResumeToken = w.position.Token()
	w.told = time.Now()
	return w.stream.Send(m)
}

// catchUp tells of all changes up to now.
func (w *watcher) catchUp(ctx context.Context) error {
	latest, err := w.latest(ctx)
	if err != nil {
		return err
	}
	for shard := range latest {
		for w.position[shard].Before(latest[shard]) {
			n, err := w.read(ctx, shard)
			if err != nil {
				return err
			}
			if n == 0 { // Redis has forgotten since latest was looked up
				break
			}
		}
	}
	return nil
}

// read tells of the next n changes of a shard.
func (w *watcher) read(ctx context.Context, shard int) (n int, err error) {
	events, err := w.Store.ReadChanges(ctx, shard, w.position[shard], watchPage)
	if err != nil {
		return 0, err
	}
	ids := make([]grant.ID, 0, len(events))
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	grants, err := w.Store.ByID(ctx, ids)
	if err != nil {
		return 0, err
	}
	now := make(map[grant.ID]grant.Grant, len(grants))
	for _, g := range grants {
		now[g.ID] = g
	}
	for _, e := range events {
		w.position[shard] = e.StreamID
		if m := w.message(e, now); m != nil {
			if err := w.send(m); err != nil {
				return 0, err
			}
		}
	}
	return len(events), nil
}

// message is what a change is told with, nil if it is not for this watcher.
func (w *watcher) message(e store.Event, now map[grant.ID]grant.Grant) *registrarv1.WatchUsersResponse {
	if e.Removed {
		if w.state != "" && w.state != grant.Deleting {
			return nil
		}
		return &registrarv1.WatchUsersResponse{Removed: true, User: &registrarv1.User{UserId: e.User, ZoomApp: e.App}}
	}
	g, known := now[e.ID]
	if !known || w.state != "" && g.State != w.state { // a later change tells
		return nil
	}
	return &registrarv1.WatchUsersResponse{User: toUser(g)}
}
