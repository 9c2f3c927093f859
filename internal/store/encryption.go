package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
)

// Encryption checks and re-encrypts what the keyset has encrypted.
type Encryption struct{ *core }

const keysetKey, keysetText = prefix + "keyset", "encrypted by the keyset in use"

// CheckKeyset checks that the keyset decrypts what is stored, and writes its mark
// into an empty Redis. It returns [ErrKeyset] if it does not.
func (s *Encryption) CheckKeyset(ctx context.Context) error {
	stored, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		if err := s.checkRecord(ctx); err != nil { // the mark may have been removed
			return err
		}
		var mark []byte
		if mark, err = s.seal.Encrypt([]byte(keysetText), keysetKey, "mark"); err != nil {
			return err
		}
		if err := s.redis.SetNX(ctx, keysetKey, mark, 0).Err(); err != nil {
			return fmt.Errorf("marking the keyset: %w", err)
		}
		stored, err = s.redis.Get(ctx, keysetKey).Bytes()
	}
	if err != nil {
		return fmt.Errorf("reading the keyset's mark: %w", err)
	}
	if _, err := s.seal.Decrypt(stored, keysetKey, "mark"); err != nil {
		return ErrKeyset
	}
	return nil
}

// checkRecord decrypts one record, if there is any.
func (s *Encryption) checkRecord(ctx context.Context) error {
	grants, err := (&Lists{s.core}).List(ctx, "", "", 1)
	switch {
	case errors.Is(err, seal.ErrDecrypt):
		return ErrKeyset
	case err != nil:
		return err
	case len(grants) == 0:
		return nil
	}
	if _, err := (&Grants{core: s.core}).ReadRefreshToken(ctx, grants[0].ID); err != nil && !errors.Is(err, grant.ErrNotFound) {
		return ErrKeyset
	}
	return nil
}

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

// CountByKey counts the grants with a value of each key. Key 0: values without a key
// id.
func (s *Encryption) CountByKey(ctx context.Context) (map[uint32]int, error) {
	counts := map[uint32]int{}
	err := s.walk(ctx, func(encrypted []encryptedRecord) error {
		for _, r := range encrypted {
			for key := range r.keys() {
				counts[key]++
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("counting grants by key: %w", err)
	}
	return counts, nil
}
