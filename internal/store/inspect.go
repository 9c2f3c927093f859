package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
)

// What operators look at. It is read straight from Redis, so that it can be read
// when nothing else works, and changes nothing but where it says so.

// CheckDecrypts makes sure that the keyset opens what is stored here, as
// [Store.CheckKeyset] does, but leaves no mark. It returns the key that has sealed
// the mark, 0 if there is none yet.
func (s *Store) CheckDecrypts(ctx context.Context) (key uint32, err error) {
	mark, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the keyset's mark: %w", err)
	}
	if _, err := s.seal.Decrypt(mark, keysetKey, "mark"); err != nil {
		return seal.SealedBy(mark), ErrKeyset
	}
	return seal.SealedBy(mark), nil
}

// Sample is what a sample of the sealed values says.
type Sample struct {
	Grants int            // looked at
	Keys   map[uint32]int // grants of which a key has sealed something
	Broken int            // grants that do not open
}

// SampleValues opens the sealed values of up to n grants of each shard.
func (s *Store) SampleValues(ctx context.Context, n int) (Sample, error) {
	indexes := make([]*redis.StringSliceCmd, grant.Shards)
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for shard := range indexes {
			indexes[shard] = pipe.ZRangeByLex(ctx, usersKey(shard, ""), &redis.ZRangeBy{Min: "-", Max: "+", Count: int64(n)})
		}
		return nil
	}); err != nil {
		return Sample{}, fmt.Errorf("sampling grants: %w", err)
	}
	sampled := Sample{Keys: map[uint32]int{}}
	for _, index := range indexes {
		records, err := s.sealedRecords(ctx, index.Val())
		if err != nil {
			return Sample{}, fmt.Errorf("sampling grants: %w", err)
		}
		for _, r := range records {
			broken := false
			for n, value := range r.values {
				if value == "" {
					continue
				}
				if _, err := s.seal.Decrypt([]byte(value), string(r.id), sealedFields[n]); err != nil {
					broken = true
				}
			}
			sampled.Grants++
			for key := range r.keys() {
				sampled.Keys[key]++
			}
			if broken {
				sampled.Broken++
			}
		}
	}
	return sampled, nil
}

// CountByState counts the grants in each state.
func (s *Store) CountByState(ctx context.Context) (map[grant.State]int, error) {
	counts := map[grant.State][]*redis.IntCmd{}
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, state := range grant.States() {
			for shard := range grant.Shards {
				counts[state] = append(counts[state], pipe.ZCard(ctx, usersKey(shard, state)))
			}
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("counting grants by state: %w", err)
	}
	states := map[grant.State]int{}
	for state, shards := range counts {
		for _, n := range shards {
			states[state] += int(n.Val())
		}
	}
	return states, nil
}

// Now returns the time by Redis's clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	now, err := s.redis.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("asking Redis for the time: %w", err)
	}
	return now, nil
}

// Planned is a grant and when it is to be renewed.
type Planned struct {
	ID grant.ID
	At time.Time
}

// ListPlanned returns up to limit grants, of all Zoom apps, that are due before a
// time by Redis's clock, the soonest first.
func (s *Store) ListPlanned(ctx context.Context, before time.Time, limit int) ([]Planned, error) {
	indexes, err := s.allDueKeys(ctx)
	if err != nil {
		return nil, err
	}
	shards := make([]*redis.ZSliceCmd, len(indexes))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, index := range indexes {
			shards[i] = pipe.ZRangeByScoreWithScores(ctx, index, &redis.ZRangeBy{
				Min: "-inf", Max: "(" + strconv.FormatInt(millis(before), 10), Count: int64(limit),
			})
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading what is to be renewed: %w", err)
	}
	var planned []Planned
	for _, shard := range shards {
		for _, z := range shard.Val() {
			id, _ := z.Member.(string)
			planned = append(planned, Planned{grant.ID(id), time.UnixMilli(int64(z.Score)).UTC()})
		}
	}
	slices.SortFunc(planned, func(a, b Planned) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return planned[:min(limit, len(planned))], nil
}

// CountOverdue counts the grants, of all Zoom apps, that are due before a time by
// Redis's clock.
func (s *Store) CountOverdue(ctx context.Context, before time.Time) (int, error) {
	indexes, err := s.allDueKeys(ctx)
	if err != nil {
		return 0, err
	}
	shards := make([]*redis.IntCmd, len(indexes))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, index := range indexes {
			shards[i] = pipe.ZCount(ctx, index, "-inf", "("+strconv.FormatInt(millis(before), 10))
		}
		return nil
	}); err != nil {
		return 0, fmt.Errorf("counting what is to be renewed: %w", err)
	}
	n := 0
	for _, shard := range shards {
		n += int(shard.Val())
	}
	return n, nil
}

// Renewal is how the renewal of a grant stands.
type Renewal struct {
	ID         grant.ID
	Due        time.Time // zero: it is not to be renewed
	Failures   int       // since the last success
	RetryAt    time.Time // zero: the last attempt did not fail
	LeaseUntil time.Time // zero: nobody has claimed it
	Intent     time.Time // since when its token may be spent without our knowing the answer; zero: it is not
	Uncertain  bool      // an earlier attempt has lost its answer
	Work       time.Time // when the registrar is to go on with it; zero: it is finished
}

// ReadRenewals reads how the renewals of grants stand, in the order of the ids.
func (s *Store) ReadRenewals(ctx context.Context, ids []grant.ID) ([]Renewal, error) {
	fields := make([]*redis.SliceCmd, len(ids))
	due, work := make([]*redis.FloatCmd, len(ids)), make([]*redis.FloatCmd, len(ids))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			fields[i] = pipe.HMGet(ctx, grantKey(id), "failures", "retry_at", "lease_until", "intent", "uncertain")
			due[i] = pipe.ZScore(ctx, dueKey(id.Shard(), id.AppTag()), string(id))
			work[i] = pipe.ZScore(ctx, workKey(id.Shard()), string(id))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // what is in no index has no score
		return nil, fmt.Errorf("reading renewals: %w", err)
	}
	renewals := make([]Renewal, len(ids))
	for i, id := range ids {
		if err := fields[i].Err(); err != nil {
			return nil, fmt.Errorf("reading renewals: %w", err)
		}
		var d decoder
		text := func(n int) string { value, _ := fields[i].Val()[n].(string); return value }
		renewals[i] = Renewal{
			ID: id, Failures: int(d.int("failures", text(0))), RetryAt: d.time("retry_at", text(1)),
			LeaseUntil: d.time("lease_until", text(2)), Intent: d.time("intent", text(3)), Uncertain: text(4) != "",
			Due: scored(due[i]), Work: scored(work[i]),
		}
		if d.err != nil {
			return nil, fmt.Errorf("reading the renewal of grant %s: %w", id, d.err)
		}
	}
	return renewals, nil
}

func scored(score *redis.FloatCmd) time.Time {
	if score.Err() != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(score.Val())).UTC()
}

// PausedName is a Zoom app, or a kind of request to Recall, that is left alone.
type PausedName struct {
	Name string
	For  time.Duration
	Why  string // for people
}

// ListPauses returns which of some names are paused; see [Store.Pause].
func (s *Store) ListPauses(ctx context.Context, names []string) ([]PausedName, error) {
	left, why := make([]*redis.DurationCmd, len(names)), make([]*redis.StringCmd, len(names))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, name := range names {
			left[i], why[i] = pipe.PTTL(ctx, pauseKey(name)), pipe.Get(ctx, pauseKey(name))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("asking what is paused: %w", err)
	}
	var paused []PausedName
	for i, name := range names {
		if left[i].Val() > 0 {
			paused = append(paused, PausedName{name, left[i].Val(), why[i].Val()})
		}
	}
	return paused, nil
}

// MakeDue makes a grant due now, whatever its plan, and takes back what it backs
// off for. Whoever keeps tokens fresh renews it then, as by its plan. It answers
// [grant.ErrFresh] in the first tenth of its token's life, [grant.ErrReauthorize],
// [grant.ErrDeleting] or [grant.ErrNotFound].
func (s *Store) MakeDue(ctx context.Context, id grant.ID) error {
	word, _, err := s.run(ctx, makeDueScript, id)
	switch {
	case err != nil:
		return fmt.Errorf("making grant %s due: %w", id, err)
	case word != "due":
		return wordError(word)
	}
	return nil
}

// JournaledResponse is an answer of Zoom's, as far as it tells whether Redis has it.
type JournaledResponse struct {
	ID        grant.ID
	OfConsent bool
	Spent     string // fingerprint of what was spent
	Refresh   string // fingerprint of the refresh token that came of it
}

// ResponseStatus is what Redis has of an answer of Zoom's.
type ResponseStatus string

// What Redis can have of an answer.
const (
	Stored     ResponseStatus = "stored"     // it, as the latest
	Wanted     ResponseStatus = "wanted"     // the token before it: it is missing, and to be committed
	Superseded ResponseStatus = "superseded" // a later one
	Absent     ResponseStatus = "absent"     // no such grant
)

// CheckResponses says what Redis has of answers, in their order.
func (s *Store) CheckResponses(ctx context.Context, answers []JournaledResponse) ([]ResponseStatus, error) {
	records, consents := make([]*redis.SliceCmd, len(answers)), make([]*redis.StringCmd, len(answers))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, a := range answers {
			records[i] = pipe.HMGet(ctx, grantKey(a.ID), "refresh_fingerprint", "consent")
			consents[i] = pipe.HGet(ctx, shardKey(a.ID.Shard(), "consents:"+string(a.ID)), a.Spent)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("asking which answers are stored: %w", err)
	}
	standings := make([]ResponseStatus, len(answers))
	for i, a := range answers {
		refresh, _ := records[i].Val()[0].(string)
		consent, _ := records[i].Val()[1].(string)
		outcome := consents[i].Val()
		switch {
		case a.OfConsent && (consent == a.Spent || outcome == "stored"):
			standings[i] = Stored
		case a.OfConsent && (outcome == "void" || strings.HasPrefix(outcome, "taken")):
			standings[i] = Superseded
		case a.OfConsent:
			standings[i] = Wanted
		case refresh == "":
			standings[i] = Absent
		case refresh == a.Refresh:
			standings[i] = Stored
		case refresh == a.Spent:
			standings[i] = Wanted
		default:
			standings[i] = Superseded
		}
	}
	return standings, nil
}
