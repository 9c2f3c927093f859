package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
)

// sealedFields are the fields of a record that are sealed.
var sealedFields = [...]string{fieldAccess, fieldRefresh, fieldKeys}

// ReencryptProgress is how far [Store.Reencrypt] has come.
type ReencryptProgress struct {
	Seen     int // grants looked at
	Resealed int // grants of which something was sealed by another key
	Broken   int // grants that no key opens
}

// Reencrypt seals again, by the key that seals now, whatever other keys have sealed,
// at most so many grants a second (0: as many as Redis takes). It tells of its
// progress now and then; tell may be nil. It can be broken off and repeated: what
// is done is done. Everything else goes on meanwhile.
func (s *Store) Reencrypt(ctx context.Context, perSecond int, tell func(ReencryptProgress)) (ReencryptProgress, error) {
	var done ReencryptProgress
	limit := rate.Inf
	if perSecond > 0 {
		limit = rate.Limit(perSecond)
	}
	pace := rate.NewLimiter(limit, walkPage)
	err := s.walk(ctx, func(sealed []sealedRecord) error {
		before := done.Resealed
		if err := s.resealAll(ctx, sealed, &done); err != nil {
			return err
		}
		// To look at a grant costs a tenth of sealing it again.
		if err := pace.WaitN(ctx, min(walkPage, done.Resealed-before+len(sealed)/10)); err != nil {
			return err
		}
		if tell != nil {
			tell(done)
		}
		return nil
	})
	if err != nil {
		return done, fmt.Errorf("sealing again: %w", err)
	}
	if err := s.resealMark(ctx); err != nil {
		return done, fmt.Errorf("sealing again: %w", err)
	}
	return done, nil
}

// CountByKey counts what each key has sealed: of how many grants something. Key 0
// is what says no key.
func (s *Store) CountByKey(ctx context.Context) (map[uint32]int, error) {
	counts := map[uint32]int{}
	err := s.walk(ctx, func(sealed []sealedRecord) error {
		for _, r := range sealed {
			for key := range r.keys() {
				counts[key]++
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("counting what each key has sealed: %w", err)
	}
	return counts, nil
}

// sealedRecord is the sealed fields of a grant; "" if it has not got one.
type sealedRecord struct {
	id     grant.ID
	values [len(sealedFields)]string
}

// keys are those that have sealed any of it.
func (r sealedRecord) keys() map[uint32]bool {
	keys := map[uint32]bool{}
	for _, value := range r.values {
		if value != "" {
			keys[seal.SealedBy(value)] = true
		}
	}
	return keys
}

// sealedRecords reads the sealed fields of grants, in the order of the ids.
func (s *Store) sealedRecords(ctx context.Context, ids []string) ([]sealedRecord, error) {
	commands := make([]*redis.SliceCmd, len(ids))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			commands[i] = pipe.HMGet(ctx, grantKey(grant.ID(id)), sealedFields[:]...)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	records := make([]sealedRecord, len(ids))
	for i, id := range ids {
		records[i].id = grant.ID(id)
		for n, value := range commands[i].Val() {
			records[i].values[n], _ = value.(string)
		}
	}
	return records, nil
}

const walkPage = 100

// walk goes through the sealed fields of every grant, page by page.
func (s *Store) walk(ctx context.Context, page func([]sealedRecord) error) error {
	for shard := range grant.Shards {
		for low := "-"; ; {
			ids, err := s.redis.ZRangeByLex(ctx, usersKey(shard, ""), &redis.ZRangeBy{Min: low, Max: "+", Count: walkPage}).Result()
			if err != nil {
				return err
			}
			if len(ids) == 0 {
				break
			}
			low = "(" + ids[len(ids)-1]
			records, err := s.sealedRecords(ctx, ids)
			if err != nil {
				return err
			}
			if err := page(records); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) resealAll(ctx context.Context, sealed []sealedRecord, done *ReencryptProgress) error {
	primary := s.seal.Primary()
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, r := range sealed {
			done.Seen++
			var changes []any
			broken := false
			for i, value := range r.values {
				if value == "" || seal.SealedBy(value) == primary {
					continue
				}
				plain, err := s.seal.Decrypt([]byte(value), string(r.id), sealedFields[i])
				if errors.Is(err, seal.ErrDecrypt) {
					broken = true
					continue
				}
				if err != nil {
					return err
				}
				again, err := s.seal.Encrypt(plain, string(r.id), sealedFields[i])
				if err != nil {
					return err
				}
				changes = append(changes, sealedFields[i], value, again)
			}
			if broken {
				done.Broken++
			}
			if len(changes) > 0 {
				done.Resealed++
				s.of(reencryptScript).Eval(ctx, pipe, recordKeys(r.id), append([]any{string(r.id)}, changes...)...)
			}
		}
		return nil
	})
	return err
}

// resealMark seals the keyset's mark again.
func (s *Store) resealMark(ctx context.Context) error {
	stored, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return err
	}
	if seal.SealedBy(stored) == s.seal.Primary() {
		return nil
	}
	if _, err := s.seal.Decrypt(stored, keysetKey, "mark"); err != nil {
		return ErrKeyset
	}
	mark, err := s.seal.Encrypt([]byte(keysetText), keysetKey, "mark")
	if err != nil {
		return err
	}
	return s.redis.Set(ctx, keysetKey, mark, 0).Err()
}

const resealedKey = prefix + "resealed"

// ReencryptedBy returns the id of the key by which everything was sealed when that was
// last made so, 0 if it never was.
func (s *Store) ReencryptedBy(ctx context.Context) (uint32, error) {
	id, err := s.redis.Get(ctx, resealedKey).Uint64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("asking by which key everything is sealed: %w", err)
	}
	return uint32(id), nil //nolint:gosec // as it was written
}

// SetReencryptedBy notes that everything is sealed by a key.
func (s *Store) SetReencryptedBy(ctx context.Context, id uint32) error {
	if err := s.redis.Set(ctx, resealedKey, id, 0).Err(); err != nil {
		return fmt.Errorf("noting by which key everything is sealed: %w", err)
	}
	return nil
}

// LockReencryption makes the caller the only one, over all replicas, who seals again,
// for at most ttl; see [Store.LockRegistration].
func (s *Store) LockReencryption(ctx context.Context, ttl time.Duration) (unlock func(), ok bool, err error) {
	return s.lock(ctx, prefix+"resealing", ttl)
}
