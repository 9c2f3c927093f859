package registrar

import (
	"cmp"
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// UserStore reads users and their changes. [store.Store] implements it. Every
// method may be repeated.
type UserStore interface {
	// Get returns a grant, or [grant.ErrNotFound].
	Get(ctx context.Context, id grant.ID) (grant.Grant, error)
	// ByID returns several grants in no order; those that do not exist are left out.
	ByID(ctx context.Context, ids []grant.ID) ([]grant.Grant, error)
	// List returns up to limit grants after an id, in the order of their ids: those
	// in a state, or all if state is "".
	List(ctx context.Context, state grant.State, after grant.ID, limit int) ([]grant.Grant, error)
	// ReadHeads returns the position after the last change of every shard.
	ReadHeads(ctx context.Context) (*store.Position, error)
	// ReadChanges returns up to limit changes of a shard after a position, oldest
	// first, or [store.ErrPositionExpired] if some of them are no longer kept.
	ReadChanges(ctx context.Context, shard int, after store.StreamID, limit int) ([]store.Event, error)
}

// Users reads users in the API's form. [Service] serves it over gRPC; tokenctl also
// uses it on Redis, without a registrar. It is safe for concurrent use.
type Users struct {
	store UserStore
	heads heads

	stopped chan struct{} // closed by EndWatches
	stop    sync.Once
}

// NewUsers returns a reader of the users in a store. It does no I/O.
func NewUsers(s UserStore) *Users { return &Users{store: s, stopped: make(chan struct{})} }

// Get returns a user, or [grant.ErrNotFound].
func (u *Users) Get(ctx context.Context, id grant.ID) (*registrarv1.User, error) {
	g, err := u.store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return toUser(g), nil
}

// List returns one page of users. A page token is the last id of the page before.
func (u *Users) List(ctx context.Context, r *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error) {
	size := int(r.GetPageSize())
	if size == 0 {
		size = 100
	}
	var after grant.ID
	if token := r.GetPageToken(); token != "" {
		id, ok := grant.ParseID(token)
		if !ok {
			return nil, &fieldError{field: "page_token", fault: "must be the next_page_token of an earlier page"}
		}
		after = id
	}
	grants, err := u.store.List(ctx, fromState(r.GetState()), after, size)
	if err != nil {
		return nil, err
	}
	response := &registrarv1.ListUsersResponse{}
	for _, g := range grants {
		response.Users = append(response.Users, toUser(g))
	}
	if len(grants) == size {
		response.NextPageToken = string(grants[size-1].ID)
	}
	return response, nil
}

// toUser returns a grant in the API's form. It is the only place that does so: a
// field of User is set here and nowhere else.
func toUser(g grant.Grant) *registrarv1.User {
	return &registrarv1.User{
		UserId:                  g.User,
		ZoomApp:                 g.App,
		State:                   toState[g.State],
		Reason:                  cmp.Or(g.Reason, g.Health),
		ZoomUserId:              g.ZoomUser,
		ZoomAccountId:           g.ZoomAccount,
		RecallCredentialId:      g.Credential,
		RecallStatus:            g.Status,
		RecallMeetingSyncStatus: g.MeetingSync,
		AccessTokenExpireTime:   toTime(g.AccessExpires),
		LastRefreshTime:         toTime(g.Refreshed),
		CreateTime:              toTime(g.Created),
		UpdateTime:              toTime(g.Updated),
	}
}

func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

var toState = map[grant.State]registrarv1.State{
	grant.StatePending:                 registrarv1.State_STATE_PENDING,
	grant.StateActive:                  registrarv1.State_STATE_ACTIVE,
	grant.StateDegraded:                registrarv1.State_STATE_DEGRADED,
	grant.StateReauthorizationRequired: registrarv1.State_STATE_REAUTHORIZATION_REQUIRED,
	grant.StateDeleting:                registrarv1.State_STATE_DELETING,
}

// fromState returns "" for an unspecified state.
func fromState(state registrarv1.State) grant.State {
	for own, public := range toState {
		if public == state {
			return own
		}
	}
	return ""
}
