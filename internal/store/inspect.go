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

// Reads for operators, directly from Redis.

// CheckDecrypts checks that the keyset decrypts what is stored, as
// [Encryption.CheckKeyset] does, but writes no mark. It returns the id of the key that
// has encrypted the mark, 0 if there is no mark.
func (s *Encryption) CheckDecrypts(ctx context.Context) (key uint32, err error) {
	mark, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the keyset's mark: %w", err)
	}
	if _, err := s.seal.Decrypt(mark, keysetKey, "mark"); err != nil {
		return seal.KeyID(mark), ErrKeyset
	}
	return seal.KeyID(mark), nil
}

// Sample is the result of [Encryption.SampleValues].
type Sample struct {
	Grants        int            // sampled
	Keys          map[uint32]int // number of grants with a value of each key
	Undecryptable int            // grants with a value that cannot be decrypted
}

// SampleValues decrypts the encrypted values of up to n grants of each shard.
func (s *Encryption) SampleValues(ctx context.Context, n int) (Sample, error) {
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
		records, err := s.readEncrypted(ctx, index.Val())
		if err != nil {
			return Sample{}, fmt.Errorf("sampling grants: %w", err)
		}
		for _, r := range records {
			broken := false
			for n, value := range r.values {
				if value == "" {
					continue
				}
				if _, err := s.seal.Decrypt([]byte(value), string(r.id), encryptedFields[n]); err != nil {
					broken = true
				}
			}
			sampled.Grants++
			for key := range r.keys() {
				sampled.Keys[key]++
			}
			if broken {
				sampled.Undecryptable++
			}
		}
	}
	return sampled, nil
}

// CountByState counts the grants in each state.
func (s *Lists) CountByState(ctx context.Context) (map[grant.State]int, error) {
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
func (s *Health) Now(ctx context.Context) (time.Time, error) {
	now, err := s.redis.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the time of Redis: %w", err)
	}
	return now, nil
}

// Planned is a grant and its due time.
type Planned struct {
	ID grant.ID
	At time.Time
}

// ListPlanned returns up to limit grants, of all Zoom apps, that are due before a
// time by Redis's clock, the soonest first.
func (s *Renewals) ListPlanned(ctx context.Context, before time.Time, limit int) ([]Planned, error) {
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
		return nil, fmt.Errorf("listing planned renewals: %w", err)
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
func (s *Renewals) CountOverdue(ctx context.Context, before time.Time) (int, error) {
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
		return 0, fmt.Errorf("counting overdue grants: %w", err)
	}
	n := 0
	for _, shard := range shards {
		n += int(shard.Val())
	}
	return n, nil
}

// Renewal is the state of a grant's renewal, by Redis's clock.
type Renewal struct {
	ID         grant.ID
	Due        time.Time // zero: no renewal is planned
	Failures   int       // since the last success
	RetryAt    time.Time // zero: the last attempt did not fail
	LeaseUntil time.Time // zero: not claimed
	Intent     time.Time // start of a renewal without a recorded result; zero: none
	Uncertain  bool      // the response of an earlier attempt was lost
	Work       time.Time // the registrar's next attempt; zero: the grant is complete
}

// ReadRenewals reads the state of renewals, in the order of the ids.
func (s *Renewals) ReadRenewals(ctx context.Context, ids []grant.ID) ([]Renewal, error) {
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
	if err != nil && !errors.Is(err, redis.Nil) { // an id outside the index has no score
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
			Due: scoreTime(due[i]), Work: scoreTime(work[i]),
		}
		if d.err != nil {
			return nil, fmt.Errorf("reading the renewal of grant %s: %w", id, d.err)
		}
	}
	return renewals, nil
}

func scoreTime(score *redis.FloatCmd) time.Time {
	if score.Err() != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(score.Val())).UTC()
}

// PausedName is a paused Zoom app, or a paused kind of request to Recall.
type PausedName struct {
	Name string
	For  time.Duration
	Why  string // for people
}

// ListPauses returns those of the names that are paused; see [Renewals.Pause].
func (s *Renewals) ListPauses(ctx context.Context, names []string) ([]PausedName, error) {
	left, why := make([]*redis.DurationCmd, len(names)), make([]*redis.StringCmd, len(names))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, name := range names {
			left[i], why[i] = pipe.PTTL(ctx, pauseKey(name)), pipe.Get(ctx, pauseKey(name))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("reading pauses: %w", err)
	}
	var paused []PausedName
	for i, name := range names {
		if left[i].Val() > 0 {
			paused = append(paused, PausedName{name, left[i].Val(), why[i].Val()})
		}
	}
	return paused, nil
}

// MakeDue makes a grant due now and ends its backoff. It returns [grant.ErrFresh] in the first tenth of its token's life, [grant.ErrReauthorize],
// [grant.ErrDeleting] or [grant.ErrNotFound].
func (s *Renewals) MakeDue(ctx context.Context, id grant.ID) error {
	word, _, err := s.run(ctx, makeDueScript, id)
	switch {
	case err != nil:
		return fmt.Errorf("making grant %s due: %w", id, err)
	case word != "due":
		return wordError(word)
	}
	return nil
}

// JournaledResponse identifies a response of Zoom in a journal.
type JournaledResponse struct {
	ID        grant.ID
	OfConsent bool
	Spent     string // fingerprint of the spent code or token
	Refresh   string // fingerprint of the refresh token in the response
}

// ResponseStatus compares a response of Zoom with the record in Redis.
type ResponseStatus string

// The statuses of a response.
const (
	ResponseStored     ResponseStatus = "stored"     // Redis has it as the latest
	ResponseMissing    ResponseStatus = "missing"    // Redis has its predecessor: it must be committed
	ResponseSuperseded ResponseStatus = "superseded" // Redis has a later response
	ResponseNoGrant    ResponseStatus = "no_grant"   // the user was removed
)

// CheckResponses returns the status of responses, in their order.
func (s *Renewals) CheckResponses(ctx context.Context, answers []JournaledResponse) ([]ResponseStatus, error) {
	records, consents := make([]*redis.SliceCmd, len(answers)), make([]*redis.StringCmd, len(answers))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, a := range answers {
			records[i] = pipe.HMGet(ctx, grantKey(a.ID), "refresh_fingerprint", "consent")
			consents[i] = pipe.HGet(ctx, shardKey(a.ID.Shard(), "consents:"+string(a.ID)), a.Spent)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("checking responses: %w", err)
	}
	standings := make([]ResponseStatus, len(answers))
	for i, a := range answers {
		refresh, _ := records[i].Val()[0].(string)
		consent, _ := records[i].Val()[1].(string)
		outcome := consents[i].Val()
		switch {
		case a.OfConsent && (consent == a.Spent || outcome == "stored"):
			standings[i] = ResponseStored
		case a.OfConsent && (outcome == "void" || strings.HasPrefix(outcome, "conflict")):
			standings[i] = ResponseSuperseded
		case a.OfConsent:
			standings[i] = ResponseMissing
		case refresh == "":
			standings[i] = ResponseNoGrant
		case refresh == a.Refresh:
			standings[i] = ResponseStored
		case refresh == a.Spent:
			standings[i] = ResponseMissing
		default:
			standings[i] = ResponseSuperseded
		}
	}
	return standings, nil
}
