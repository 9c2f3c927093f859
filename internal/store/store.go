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
//	tp1:reencrypt_lock            lock: re-encryption
//	tp1:pause:APP                 reason for the pause of a Zoom app;
//	                              recall:list and recall:other, the same for Recall
//	tp1:processes                 hash: last heartbeat of each process
//	rate:tp1:recall:KIND          recent requests to Recall (redis_rate's)
//	tp1:reconcile_progress        string: progress of the reconciliation
//	tp1:reconcile_lock            lock: reconciliation
//	tp1:doctor                    lock: check that Redis is writable
//
// The access token, the refresh token and the callback secrets are encrypted, each
// bound to its grant and its field. Scripts see fingerprints and times only.
// "tp1" is the version of this format.
package store

import (
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

// SetWaitReplicas makes every commit wait until n replicas of Redis have it. It is
// to be called before the store is used.
func (s *Store) SetWaitReplicas(n int) { s.Renewals.waitReplicas = n }

const prefix = "tp1:"

func shardKey(shard int, name string) string {
	return fmt.Sprintf("%s{s%03d}:%s", prefix, shard, name)
}

func grantKey(id grant.ID) string { return shardKey(id.Shard(), "grant:"+string(id)) }

// recordKeys returns the KEYS of every script that changes a record, in the order
// of record.lua.
func recordKeys(id grant.ID) []string {
	shard := id.Shard()
	keys := []string{grantKey(id), dueKey(shard, id.AppTag()), usersKey(shard, "")}
	for _, state := range grant.States() {
		keys = append(keys, usersKey(shard, state))
	}
	return append(keys, zoomKey(shard), changedKey(shard), workKey(shard), changesKey(shard),
		shardKey(shard, "consents:"+string(id)), appsKey(shard))
}

// dueKey names the index of a shard's grants to one Zoom app by due time.
func dueKey(shard int, appTag string) string { return shardKey(shard, "due:"+appTag) }

// workKey names the index of a shard's incomplete grants.
func workKey(shard int) string { return shardKey(shard, "work") }

// changesKey names the stream of a shard's changes.
func changesKey(shard int) string { return shardKey(shard, "changes") }

// appsKey names the hash with the number of a shard's grants to each Zoom app.
func appsKey(shard int) string { return shardKey(shard, "apps") }

// zoomKey names the index of a shard's grants by their Zoom user.
func zoomKey(shard int) string { return shardKey(shard, "zoom") }

// changedKey names the channel that publishes a shard's changes.
func changedKey(shard int) string { return shardKey(shard, "changed") }

// usersKey names the index of a shard's grants in a state, or of all of them.
func usersKey(shard int, state grant.State) string {
	if state == "" {
		return shardKey(shard, "users")
	}
	return shardKey(shard, "users:"+string(state))
}

func millis(t time.Time) int64 { return t.UnixMilli() }
