package store

import (
	"context"
	"embed"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

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

// scriptNames maps the SHA-1 of each script to its name, for metrics.
var scriptNames = map[string]string{}

// script returns a script: a prelude, the files of others, then the named file.
func script(name, prelude string, others ...string) *redis.Script {
	source := []byte(prelude)
	for _, part := range append(others, name) {
		text, err := scripts.ReadFile("scripts/" + part + ".lua")
		if err != nil {
			panic(err) // a wrong name above, which every test would reveal
		}
		source = append(append(source, text...), '\n')
	}
	made := redis.NewScript(string(source))
	scriptNames[made.Hash()] = name
	return made
}

// recordScript is a script that changes a record. A single server and a cluster
// publish with different commands.
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

// run runs a record script. It returns the first word of the reply and the rest.
func (s *core) run(ctx context.Context, script recordScript, id grant.ID, args ...any) (string, []any, error) {
	reply, err := s.variant(script).Run(ctx, s.redis, recordKeys(id), append([]any{string(id)}, args...)...).Slice()
	if err != nil {
		return "", nil, err
	}
	if len(reply) == 0 {
		return "", nil, errors.New("a script returned nothing")
	}
	word, _ := reply[0].(string)
	return word, reply[1:], nil
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
	return fmt.Errorf("a script returned %q, an unknown word", word)
}
