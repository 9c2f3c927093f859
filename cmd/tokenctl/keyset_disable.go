package main

import (
	"context"
	"fmt"
	"strings"

	"tokenprovider/internal/app"
	"tokenprovider/internal/seal"
)

type keysetDisable struct {
	Key       uint32 `arg:"" help:"Id of the key."`
	OnlyCheck bool   `name:"check" xor:"redis" help:"Check for records in Redis that need the key, without a change."`
	Offline   bool   `xor:"redis" help:"No check of Redis, after --check elsewhere."`
	confirmed
	app.Redis
	editedKeyset
}

// Check implements [config.Checker].
func (k *keysetDisable) Check(fault func(setting, text string)) {
	if !k.Offline {
		k.Redis.Check(fault)
	}
	k.editedKeyset.Check(fault)
}

// IsOptional implements [config.OptionalSettings].
func (k *keysetDisable) IsOptional(setting string) bool { return k.Offline && setting == "REDIS_URL" }

// Help implements [kong.HelpProvider].
func (*keysetDisable) Help() string {
	return `Checks every grant first, and refuses while a record in Redis needs the key. Journals keep responses for some minutes, or longer if Redis lacks them: wait ten minutes after the re-encryption, and check that no journal entry waits (tokenctl doctor). Backups need the key that encrypted them: keep the previous file. The key stays in the file; keyset enable reverts this.

If Redis and the file are not reachable from one place, as with a Secret in Kubernetes, use two steps: --check with Redis, then --offline with the file.

Examples:

  tokenctl keyset disable 3141592653 --keyset-file keyset.json

  kubectl exec -i deploy/token-provider-registrar -- tokenctl keyset disable 3141592653 --check`
}

func (k *keysetDisable) run(ctx context.Context, s *session) error {
	key, err := k.key(k.Key)
	switch {
	case err != nil:
		return err
	case key.Primary:
		return fmt.Errorf("keyset disable: key %d is the primary key: promote another first", k.Key)
	case !key.Enabled:
		return fmt.Errorf("keyset disable: key %d is disabled already", k.Key)
	}
	if !k.Offline {
		if err := k.checkUnused(ctx); err != nil {
			return err
		}
	}
	if k.OnlyCheck {
		s.say("No record in Redis needs key %d.", k.Key)
		return s.object(map[string]any{"key": k.Key, "in_use": false})
	}
	checked := "no record in Redis needs it"
	if k.Offline {
		checked = "Redis was not checked for records that need it"
	}
	if err := k.confirm(ctx, s, fmt.Sprintf("Key %d will decrypt nothing: %s. A journal or a backup may need it.", k.Key, checked)); err != nil {
		return err
	}
	backup, err := k.edit(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Disable(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset disable: %w", err)
	}
	s.say("Key %d is disabled. The previous file is %s: keep it as long as backups that the key encrypted.", k.Key, backup)
	return s.object(keysetChange{k.Key, "disabled", k.KeysetFile, backup})
}

// checkUnused returns an error if a record in Redis needs the key.
func (k *keysetDisable) checkUnused(ctx context.Context) error {
	records := app.Records{Redis: k.Redis, Encryption: k.Encryption}
	grants, err := records.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = records.Close() }()
	counts, err := grants.CountByKey(ctx)
	if err != nil {
		return err
	}
	mark, err := grants.CheckDecrypts(ctx)
	if err != nil {
		return err
	}
	var users []string
	if n := counts[k.Key]; n > 0 {
		users = append(users, "records of "+count(n, "grant"))
	}
	if mark == k.Key {
		users = append(users, "the record that identifies the keyset")
	}
	if len(users) > 0 {
		return fmt.Errorf("keyset disable: key %d encrypts %s: run tokenctl reencrypt first", k.Key, strings.Join(users, " and "))
	}
	if counts[0] > 0 {
		return fmt.Errorf("keyset disable: the keys of %s are unknown: run tokenctl reencrypt first", count(counts[0], "grant"))
	}
	return nil
}
