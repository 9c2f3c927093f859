// Package store keeps grants in Redis. Nobody else names a key.
//
// A grant is one hash. It lives in one of [grant.Shards] shards, together with
// the shard's due index and its indexes by id and by state. All keys of a shard
// share a hash tag, so one script changes them together, on Redis Cluster too:
//
//	tp1:{s017}:grant:ID           hash: the record
//	tp1:{s017}:due:TAG            sorted set: the ids of one Zoom app by due time, in
//	                              ms; TAG is the app's, see grant.AppTag
//	tp1:{s017}:users              sorted set: every id, in order
//	tp1:{s017}:users:STATE        sorted set: the ids in a state, in order
//	tp1:{s017}:zoom               sorted set: zoom user NUL app NUL id, in order
//	tp1:{s017}:changed            channel: the id of each grant that changes
//	tp1:{s017}:work               sorted set: id by when the registrar goes on with it
//	tp1:{s017}:changes            stream: changes that users of the API can see
//	tp1:{s017}:apps               hash: how many grants each Zoom app has
//	tp1:{s017}:consents:ID        hash: what came of a user's codes, for a day
//	tp1:{s017}:registering:ID     lock: somebody is registering this user
//	tp1:keyset                    a known text, sealed, to tell a wrong keyset
//	tp1:resealed                  id of the key by which everything was sealed again
//	tp1:resealing                 lock: somebody seals again
//	tp1:pause:APP                 why no replica calls Zoom for an app just now;
//	                              recall:list and recall:other, the same for Recall
//	tp1:processes                 hash: which processes live, and when each last said so
//	rate:tp1:recall:KIND          requests to Recall of late (redis_rate's)
//	tp1:reconcile                 hash: how far the reconciliation has come
//	tp1:reconciling               lock: somebody reconciles
//	tp1:doctor                    lock: somebody looks whether Redis can be written
//
// The access token, the refresh token and the callback keys are sealed, each
// bound to its grant and its field. Scripts see fingerprints and times only.
// "tp1" is the version of this format.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
)

// ErrKeyset means: the records in this Redis were sealed with another keyset.
var ErrKeyset = errors.New("the keyset does not open what is stored in this Redis")

// ErrUnavailable means: Redis could not be asked.
var ErrUnavailable = errors.New("Redis cannot be asked") //nolint:staticcheck // a name

// Store is safe for concurrent use. Every method is bounded by its context and
// by the timeouts of the Redis client.
type Store struct {
	redis      redis.UniversalClient
	continuity *FailoverDetector
	seal       *seal.Keyset

	reads        *reads
	waitReplicas int
	decoy        [len(servingFields)]string // a record that is nobody's, see [Store.ReadServingRecord]
}

// New returns a store on a connection, which stays the caller's to close.
func New(connection *Connection, keyset *seal.Keyset) *Store {
	s := &Store{
		redis: connection.UniversalClient, continuity: connection.continuity, seal: keyset,
		reads: &reads{redis: connection.UniversalClient},
	}
	s.decoy = s.newDecoy()
	return s
}

// WaitReplicas makes every commit wait until n replicas of Redis have it. It is
// to be called before the store is used.
func (s *Store) WaitReplicas(n int) { s.waitReplicas = n }

// Ping reports whether Redis answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("asking Redis: %w", err)
	}
	return nil
}

const keysetKey, keysetText = prefix + "keyset", "opened by the keyset in use"

// CheckKeyset makes sure that the keyset opens what is stored here, and leaves
// its mark in an empty Redis. It answers [ErrKeyset] if it does not.
func (s *Store) CheckKeyset(ctx context.Context) error {
	stored, err := s.redis.Get(ctx, keysetKey).Bytes()
	if errors.Is(err, redis.Nil) {
		if err := s.checkRecord(ctx); err != nil { // somebody may have removed the mark
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

// checkRecord opens one record, if there is any.
func (s *Store) checkRecord(ctx context.Context) error {
	grants, err := s.List(ctx, "", "", 1)
	switch {
	case errors.Is(err, seal.ErrDecrypt):
		return ErrKeyset
	case err != nil:
		return err
	case len(grants) == 0:
		return nil
	}
	if _, err := s.ReadRefreshToken(ctx, grants[0].ID); err != nil && !errors.Is(err, grant.ErrNotFound) {
		return ErrKeyset
	}
	return nil
}

const prefix = "tp1:"

func shardKey(shard int, name string) string {
	return fmt.Sprintf("%s{s%03d}:%s", prefix, shard, name)
}

func grantKey(id grant.ID) string { return shardKey(id.Shard(), "grant:"+string(id)) }

// recordKeys are the KEYS of every script that changes a record, in the order
// that record.lua gives.
func recordKeys(id grant.ID) []string {
	shard := id.Shard()
	keys := []string{grantKey(id), dueKey(shard, id.AppTag()), usersKey(shard, "")}
	for _, state := range grant.States() {
		keys = append(keys, usersKey(shard, state))
	}
	return append(keys, zoomKey(shard), changedKey(shard), workKey(shard), changesKey(shard),
		shardKey(shard, "consents:"+string(id)), appsKey(shard))
}

// dueKey is the index of a shard's grants to one Zoom app by due time.
func dueKey(shard int, appTag string) string { return shardKey(shard, "due:"+appTag) }

// workKey is the index of a shard's grants that the registrar has to go on with.
func workKey(shard int) string { return shardKey(shard, "work") }

// changesKey is the stream of a shard's changes.
func changesKey(shard int) string { return shardKey(shard, "changes") }

// appsKey counts a shard's grants by their Zoom app.
func appsKey(shard int) string { return shardKey(shard, "apps") }

// zoomKey is the index of a shard's grants by their Zoom user.
func zoomKey(shard int) string { return shardKey(shard, "zoom") }

// changedKey is the channel on which a shard's changes are told.
func changedKey(shard int) string { return shardKey(shard, "changed") }

// usersKey is the index of a shard's grants in a state, or of all of them.
func usersKey(shard int, state grant.State) string {
	if state == "" {
		return shardKey(shard, "users")
	}
	return shardKey(shard, "users:"+string(state))
}

//go:embed scripts/*.lua
var scripts embed.FS

var (
	acceptConsentScript  = record("accept_consent")
	claimConsentScript   = record("claim_consent")
	releaseConsentScript = record("release_consent")
	postponeScript       = record("postpone")
	markListedScript     = record("mark_listed")
	claimScript          = record("claim")
	commitScript         = record("commit")
	failScript           = record("fail")
	changeScript         = record("change")
	removeScript         = record("remove")
	markServedScript     = record("mark_served")
	reindexScript        = record("reindex")
	deauthorizeScript    = record("deauthorize")
	reencryptScript      = record("reencrypt")
	makeDueScript        = record("make_due")
	restoreScript        = record("restore")
	pauseScript          = script("pause", "")
	heartbeatScript      = script("heartbeat", "")
	listDueScript        = script("list_due", "")
	unlockScript         = script("unlock", "")
	extendScript         = script("extend", "")
)

// scriptNames are the scripts' names, by the sums that Redis knows them by.
var scriptNames = map[string]string{}

// script is the script of a name, after a prelude and what else it is made of.
func script(name, prelude string, others ...string) *redis.Script {
	source := []byte(prelude)
	for _, part := range append(others, name) {
		text, err := scripts.ReadFile("scripts/" + part + ".lua")
		if err != nil {
			panic(err) // a name above is wrong: the program cannot have been tested
		}
		source = append(append(source, text...), '\n')
	}
	made := redis.NewScript(string(source))
	scriptNames[made.Hash()] = name
	return made
}

// recordScript is a script that changes a record, in two forms: a change is told
// in another way on a cluster.
type recordScript struct{ server, cluster *redis.Script }

func record(name string) recordScript {
	return recordScript{
		server:  script(name, luaUserFields()+"local publish = 'PUBLISH'\n", "record"),
		cluster: script(name, luaUserFields()+"local publish = 'SPUBLISH'\n", "record"),
	}
}

// of is the form of a script that fits the store's Redis.
func (s *Store) of(script recordScript) *redis.Script {
	if _, cluster := s.redis.(*redis.ClusterClient); cluster {
		return script.cluster
	}
	return script.server
}

// run runs a record script. Its answer is a list that begins with a word.
func (s *Store) run(ctx context.Context, script recordScript, id grant.ID, args ...any) (string, []any, error) {
	answer, err := s.of(script).Run(ctx, s.redis, recordKeys(id), append([]any{string(id)}, args...)...).Slice()
	if err != nil {
		return "", nil, err
	}
	if len(answer) == 0 {
		return "", nil, errors.New("a script answered nothing")
	}
	word, _ := answer[0].(string)
	return word, answer[1:], nil
}

// wordErrors are the answers of scripts that mean the same everywhere.
var wordErrors = map[string]error{
	"missing":    grant.ErrNotFound,
	"deleting":   grant.ErrDeleting,
	"gone":       grant.ErrReauthorize,
	"fresh":      grant.ErrFresh,
	"conflict":   grant.ErrConflict,
	"superseded": grant.ErrSuperseded,
}

func wordError(word string) error {
	if err := wordErrors[word]; err != nil {
		return err
	}
	return fmt.Errorf("a script answered %q, which this version does not know", word)
}

func millis(t time.Time) int64 { return t.UnixMilli() }
