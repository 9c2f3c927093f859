// Package store keeps grants in Redis. No other package names a key.
//
// Clocks: due times, leases, retries, pauses and heartbeats are by Redis's clock,
// which the scripts read. Issue and expiry of a token are by the clock of the
// process that called Zoom. [Work.ListWork] compares with the process's clock.
//
// Locks: see [Locks]. Correctness never depends on a lock: [Grants.Change] compares
// versions, and [Renewals.Commit] compares refresh tokens.
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
//	tp1:{s017}:changed            channel: the id of each changed grant
//	tp1:{s017}:work               sorted set: id by the time of the registrar's next attempt
//	tp1:{s017}:changes            stream: changes that are visible in the API
//	tp1:{s017}:apps               hash: number of grants of each Zoom app
//	tp1:{s017}:consents:ID        hash: outcomes of a user's consents, for a day
//	tp1:{s017}:registering:ID     lock: registration of this user
//	tp1:keyset                    a known text, encrypted, to detect a wrong keyset
//	tp1:reencrypted_by            id of the key of the last complete re-encryption
//	tp1:reencrypting              lock: re-encryption
//	tp1:pause:APP                 reason for the pause of a Zoom app;
//	                              recall:list and recall:other, the same for Recall
//	tp1:processes                 hash: last heartbeat of each process
//	rate:tp1:recall:KIND          recent requests to Recall (redis_rate's)
//	tp1:reconcile                 string: progress of the reconciliation
//	tp1:reconciling               lock: reconciliation
//	tp1:doctor                    lock: check that Redis is writable
//
// The access token, the refresh token and the callback secrets are encrypted, each
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

// ErrKeyset means that the records in this Redis were encrypted with another keyset.
var ErrKeyset = errors.New("the keyset does not decrypt what is stored in this Redis")

// ErrUnavailable means that Redis could not be read.
var ErrUnavailable = errors.New("Redis cannot be asked") //nolint:staticcheck // a name

// Store holds the themes of the storage. All share one connection and keyset. A
// consumer declares an interface with the few methods that it uses.
type Store struct {
	*Grants
	*Renewals
	*Consents
	*Lists
	*Work
	*Changes
	*Locks
	*Backup
	*Encryption
	*Health
}

// core is what all themes share. Every method is safe for concurrent use, and is
// bounded by its context and by the timeouts of the Redis client.
type core struct {
	redis        redis.UniversalClient
	failovers    *FailoverDetector
	seal         *seal.Keyset
	waitReplicas int
}

// Grants reads, changes and removes single grants.
//
// Get, ByID and the Read methods may be repeated. Change and Remove compare the
// version that was read and fail with [grant.ErrConflict] if it is not the stored
// one. After a lost reply the caller reads the grant again.
type Grants struct {
	*core
	batcher *readBatcher
	decoy   [len(servingFields)]string // a record of no user, see [Grants.ReadServingRecord]
}

// Renewals claims, commits and schedules renewals. All times are by Redis's
// clock, except those that a caller passes: the claim's ValidUntil, the token's
// issue and expiry, and the renewal time.
//
// Claim may be repeated with the same owner. Commit may be repeated at any time:
// it accepts a response only if the stored refresh token is the one that was
// spent. Fail applies only while its claim is the newest one.
type Renewals struct{ *core }

// Consents records what became of each code or refresh token that a user was
// registered with. A consent is claimed, then accepted or released:
//
//	absent, open → spending   ClaimConsent, by one replica at a time
//	spending → spending       ClaimConsent, once the holder is considered dead
//	spending → stored         AcceptConsent: the grant is stored
//	spending → open           ReleaseConsent without outcome: it may be tried again
//	spending → void, conflict    ReleaseConsent with an outcome: final
//	any → void                Grants.Remove: the user was removed
//
// Outcomes are kept for [grant.ConsentMemory]. AcceptConsent may be repeated, and
// may come late.
type Consents struct{ *core }

// Lists reads many grants, in the order of their IDs, and counts them. It changes
// nothing.
type Lists struct{ *core }

// Work is the registrar's queue of incomplete grants, and the progress of its
// reconciliation. Every replica works on the same queue; locks save double work.
type Work struct{ *core }

// Changes publishes changes of records: to subscribers at once, without history
// ([Changes.Subscribe]), and as a stream with positions ([Changes.ReadChanges]).
type Changes struct{ *core }

// Locks limits work across all replicas. A lock saves work; it does not protect a
// record. Lock order: registration of a user, then nothing else; reconciliation
// takes registration locks, never the reverse.
type Locks struct{ *core }

// Backup reads all grants in clear, and restores them.
type Backup struct{ *core }

// Encryption checks and re-encrypts what the keyset has encrypted.
type Encryption struct{ *core }

// Health reports the state of Redis and of the processes that use it.
type Health struct{ *core }

// New returns a store on a connection, which the caller closes.
func New(connection *Connection, keyset *seal.Keyset) *Store {
	c := &core{redis: connection.UniversalClient, failovers: connection.failovers, seal: keyset}
	s := &Store{
		Grants: &Grants{core: c, batcher: &readBatcher{redis: c.redis}}, Renewals: &Renewals{c}, Consents: &Consents{c},
		Lists: &Lists{c}, Work: &Work{c}, Changes: &Changes{c}, Locks: &Locks{c}, Backup: &Backup{c},
		Encryption: &Encryption{c}, Health: &Health{c},
	}
	s.decoy = s.newDecoy()
	return s
}

// WaitReplicas makes every commit wait until n replicas of Redis have it. It is
// to be called before the store is used.
func (s *Store) WaitReplicas(n int) { s.Renewals.waitReplicas = n }

// Ping returns an error if Redis does not respond.
func (s *Health) Ping(ctx context.Context) error {
	if err := s.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("pinging Redis: %w", err)
	}
	return nil
}

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

// workKey is the index of a shard's incomplete grants.
func workKey(shard int) string { return shardKey(shard, "work") }

// changesKey is the stream of a shard's changes.
func changesKey(shard int) string { return shardKey(shard, "changes") }

// appsKey counts a shard's grants by their Zoom app.
func appsKey(shard int) string { return shardKey(shard, "apps") }

// zoomKey is the index of a shard's grants by their Zoom user.
func zoomKey(shard int) string { return shardKey(shard, "zoom") }

// changedKey is the channel that publishes a shard's changes.
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

// recordScript is a script that changes a record, for a single server and for a
// cluster, which publish with different commands.
type recordScript struct{ single, cluster *redis.Script }

func record(name string) recordScript {
	return recordScript{
		single:  script(name, luaUserFields()+"local publish = 'PUBLISH'\n", "record"),
		cluster: script(name, luaUserFields()+"local publish = 'SPUBLISH'\n", "record"),
	}
}

// of is the form of a script that fits the store's Redis.
func (s *core) variant(script recordScript) *redis.Script {
	if _, cluster := s.redis.(*redis.ClusterClient); cluster {
		return script.cluster
	}
	return script.single
}

// run runs a record script. Its reply is a list that begins with a word.
func (s *core) run(ctx context.Context, script recordScript, id grant.ID, args ...any) (string, []any, error) {
	answer, err := s.variant(script).Run(ctx, s.redis, recordKeys(id), append([]any{string(id)}, args...)...).Slice()
	if err != nil {
		return "", nil, err
	}
	if len(answer) == 0 {
		return "", nil, errors.New("a script returned nothing")
	}
	word, _ := answer[0].(string)
	return word, answer[1:], nil
}

// wordErrors are the replies that have one meaning in all scripts.
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
	return fmt.Errorf("a script returned %q, which is unknown to this version", word)
}

func millis(t time.Time) int64 { return t.UnixMilli() }
