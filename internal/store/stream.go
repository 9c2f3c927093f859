package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// ErrPositionExpired means that changes after the position were dropped from Redis.
var ErrPositionExpired = errors.New("position expired: later changes were dropped")

// Position is a position in the changes of every shard. Zero is before all changes.
type Position [grant.Shards]StreamID

// StreamID is the place of a change in its shard's stream: Redis's time in ms, and a
// number within it.
type StreamID struct{ Time, Number uint64 }

func (m StreamID) String() string { return fmt.Sprintf("%d-%d", m.Time, m.Number) }

// Before reports whether a change comes before another of the same shard.
func (m StreamID) Before(other StreamID) bool {
	return m.Time < other.Time || m.Time == other.Time && m.Number < other.Number
}

func parseStreamID(text string) (StreamID, error) {
	time, number, _ := strings.Cut(text, "-")
	t, errTime := strconv.ParseUint(time, 10, 64)
	n, errNumber := strconv.ParseUint(number, 10, 64)
	if err := errors.Join(errTime, errNumber); err != nil {
		return StreamID{}, fmt.Errorf("the id of a change: %w", err)
	}
	return StreamID{t, n}, nil
}

// Token returns the position as text, for [ParsePosition].
func (p *Position) Token() string {
	data := []byte{1} // version
	for _, mark := range p {
		data = binary.AppendUvarint(data, mark.Time)
		data = binary.AppendUvarint(data, mark.Number)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// ParsePosition parses the result of [Position.Token].
func ParsePosition(token string) (*Position, bool) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(data) == 0 || data[0] != 1 {
		return nil, false
	}
	p, data := &Position{}, data[1:]
	for i := range p {
		for _, part := range []*uint64{&p[i].Time, &p[i].Number} {
			value, n := binary.Uvarint(data)
			if n <= 0 {
				return nil, false
			}
			*part, data = value, data[n:]
		}
	}
	return p, len(data) == 0
}

// ReadHeads returns the position after the last change of every shard.
func (s *Changes) ReadHeads(ctx context.Context) (*Position, error) {
	last := make([]*redis.XMessageSliceCmd, grant.Shards)
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range last {
			last[shard] = pipe.XRevRangeN(ctx, changesKey(shard), "+", "-", 1)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the last changes: %w", err)
	}
	p := &Position{}
	for shard, reply := range last {
		for _, message := range reply.Val() {
			if p[shard], err = parseStreamID(message.ID); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// Event is a change that is visible in the API.
type Event struct {
	StreamID
	ID        grant.ID
	State     grant.State // after the change
	Removed   bool        // the grant was removed; State is empty
	App, User string      // set if the grant was removed
}

// ReadChanges returns up to limit changes of a shard after a position, in order. A
// shard keeps about 4,096 changes. It returns [ErrPositionExpired] if a change after
// the position was dropped.
func (s *Changes) ReadChanges(ctx context.Context, shard int, after StreamID, limit int) ([]Event, error) {
	messages, err := s.redis.XRangeN(ctx, changesKey(shard), "("+after.String(), "+", int64(limit)).Result()
	if err != nil {
		return nil, fmt.Errorf("reading the changes of shard %d: %w", shard, err)
	}
	events := make([]Event, 0, len(messages))
	for i, message := range messages {
		text := func(field string) string { value, _ := message.Values[field].(string); return value }
		mark, errMark := parseStreamID(message.ID)
		before, errBefore := parseStreamID(text("after"))
		if err := errors.Join(errMark, errBefore); err != nil {
			return nil, fmt.Errorf("reading the changes of shard %d: %w", shard, err)
		}
		if i == 0 && after.Before(before) {
			return nil, ErrPositionExpired
		}
		e := Event{StreamID: mark, ID: grant.ID(text("id")), State: grant.State(text("state")), App: text("app"), User: text("user")}
		if e.State == "removed" {
			e.State, e.Removed = "", true
		}
		events = append(events, e)
	}
	return events, nil
}
