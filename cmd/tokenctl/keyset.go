package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
)

type keysetCreate struct {
	File         string `arg:"" help:"File to write; it must not exist."`
	KeysetKMSURI string `name:"keyset-kms-uri" env:"KEYSET_KMS_URI" placeholder:"URI" help:"Key of a KMS to wrap it by: aws-kms://ARN, gcp-kms://NAME or hcvault://HOST/transit/keys/NAME. Empty: the keyset is in clear."`
}

// run writes a new keyset, readable by its owner alone.
func (k *keysetCreate) run(ctx context.Context, s *session) error {
	wrapping, err := keyset.Wrapping(ctx, k.KeysetKMSURI)
	if err != nil {
		return config.Faults{"KEYSET_KMS_URI: " + err.Error()}
	}
	json, err := wrapping.Generate()
	if err != nil {
		return fmt.Errorf("keyset create: %w", err)
	}
	if err := keyset.Create(k.File, json); err != nil {
		return fmt.Errorf("keyset create: %w", orAnother(err))
	}
	s.say("Wrote %s. Keep a copy of it somewhere safe: without it every grant in Redis is lost.", k.File)
	return s.object(map[string]string{"file": k.File})
}

// edited is a keyset that a command changes.
type edited struct{ app.Encryption }

// change changes the keyset's file, and returns where the one before is.
func (e *edited) change(ctx context.Context, how func(seal.Wrapping, []byte) ([]byte, error)) (backup string, err error) {
	wrapping, err := keyset.Wrapping(ctx, e.KeysetKMSURI)
	if err != nil {
		return "", err
	}
	json, err := os.ReadFile(e.KeysetFile)
	if err != nil {
		return "", err
	}
	if json, err = how(wrapping, json); err != nil {
		return "", err
	}
	return keyset.Replace(e.KeysetFile, json)
}

// key finds a key of the keyset.
func (e *edited) key(id uint32) (seal.Key, error) {
	for _, key := range e.Keyset().Keys() {
		if key.ID == id {
			return key, nil
		}
	}
	return seal.Key{}, config.Faults{fmt.Sprintf("<key>: the keyset has no key %d (see tokenctl keyset show)", id)}
}

type keysetShow struct{ edited }

// Help implements [kong.HelpProvider].
func (*keysetShow) Help() string {
	return `Ids and states only. What each key has sealed is told by tokenctl doctor, from a sample, and by tokenctl keyset disable.

Example:

  tokenctl keyset show --keyset-file keyset.json`
}

// sealingKey is a key in JSON.
type sealingKey struct {
	ID      uint32 `json:"key"`
	Enabled bool   `json:"enabled"`
	Seals   bool   `json:"seals"`
}

func (k *keysetShow) run(_ context.Context, s *session) error {
	rows := s.table("KEY", "OPENS", "SEALS")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, key := range k.Keyset().Keys() {
		if err := s.object(sealingKey{key.ID, key.Enabled, key.Primary}); err != nil {
			return err
		}
		rows.row(strconv.FormatUint(uint64(key.ID), 10), yes[key.Enabled], yes[key.Primary])
	}
	rows.flush()
	return nil
}

// changed is what has become of the keyset, in JSON.
type changed struct {
	Key    uint32 `json:"key"`
	Did    string `json:"did"`
	File   string `json:"file"`
	Backup string `json:"backup"`
}

type keysetRotate struct{ edited }

// Help implements [kong.HelpProvider].
func (*keysetRotate) Help() string {
	return `A key is replaced in four steps, with time between them: rotate adds a key that opens and does not seal yet; promote makes it seal, once every process has read the file; what other keys have sealed is sealed again, by the registrar or by tokenctl reseal; disable ends the old key. Each step keeps the file before it beside the new one. Where the file is a Kubernetes Secret, change a copy of it, and apply that.

Example:

  tokenctl keyset rotate --keyset-file keyset.json`
}

func (k *keysetRotate) run(ctx context.Context, s *session) error {
	var added uint32
	backup, err := k.change(ctx, func(w seal.Wrapping, json []byte) (changed []byte, err error) {
		changed, added, err = w.AddKey(json)
		return changed, err
	})
	if err != nil {
		return fmt.Errorf("keyset rotate: %w", err)
	}
	s.say("Added key %d to %s; it opens, and does not seal yet. The file before is %s.\n", added, k.KeysetFile, backup)
	s.say("Next, once every token server and registrar has read the file (it takes them RELOAD_INTERVAL, and Kubernetes a minute or two to bring it there):")
	s.say("  tokenctl keyset promote %d", added)
	return s.object(changed{added, "added", k.KeysetFile, backup})
}

type keysetPromote struct {
	Key uint32 `arg:"" help:"The key's id."`
	confirmed
	edited
}

// Help implements [kong.HelpProvider].
func (*keysetPromote) Help() string {
	return `Every process must have read the file with the new key by now, or it cannot open what others seal: callbacks would fail there until it has.

Example:

  tokenctl keyset promote 2718281828 --keyset-file keyset.json`
}

func (k *keysetPromote) run(ctx context.Context, s *session) error {
	key, err := k.key(k.Key)
	switch {
	case err != nil:
		return err
	case key.Primary:
		return fmt.Errorf("keyset promote: key %d seals already", k.Key)
	case !key.Enabled:
		return fmt.Errorf("keyset promote: key %d is disabled: enable it first", k.Key)
	}
	if err := k.confirm(ctx, s, fmt.Sprintf("Key %d seals from now on. A process that has not read it yet cannot open what it seals.", k.Key)); err != nil {
		return err
	}
	old := k.Keyset().Primary()
	backup, err := k.change(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Promote(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset promote: %w", err)
	}
	s.say("Key %d seals from now on. The file before is %s.\n", k.Key, backup)
	s.say("Next: the registrar seals again what other keys have sealed, some minutes after it has read the file. Or do it now, and then end the old key:")
	s.say("  tokenctl reseal\n  tokenctl keyset disable %d", old)
	return s.object(changed{k.Key, "promoted", k.KeysetFile, backup})
}

type keysetDisable struct {
	Key       uint32 `arg:"" help:"The key's id."`
	OnlyCheck bool   `name:"check" xor:"redis" help:"Only see whether anything in Redis is sealed by the key."`
	Offline   bool   `xor:"redis" help:"Do not ask Redis: --check has, elsewhere."`
	confirmed
	app.Redis
	edited
}

// Check implements [config.Checker].
func (k *keysetDisable) Check(fault func(setting, text string)) {
	if !k.Offline {
		k.Redis.Check(fault)
	}
	k.edited.Check(fault)
}

// Spares implements [config.OptionalSettings].
func (k *keysetDisable) IsOptional(setting string) bool { return k.Offline && setting == "REDIS_URL" }

// Help implements [kong.HelpProvider].
func (*keysetDisable) Help() string {
	return `It looks at every grant first, and says no while anything in Redis is sealed by the key. Journals hold what they had for some minutes, and for longer where Redis is missing something: so wait ten minutes after the re-sealing, and see that no journal waits (tokenctl doctor). Backups that the key has sealed need it: keep the file before. The key stays in the file, and keyset enable takes this back.

Where one place has Redis and another the file, as with a Secret in Kubernetes, do it in two steps: --check beside Redis, then --offline beside the file.

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
		return fmt.Errorf("keyset disable: key %d is the one that seals: promote another first", k.Key)
	case !key.Enabled:
		return fmt.Errorf("keyset disable: key %d is disabled already", k.Key)
	}
	if !k.Offline {
		if err := k.unneeded(ctx); err != nil {
			return err
		}
	}
	if k.OnlyCheck {
		s.say("Nothing in Redis is sealed by key %d.", k.Key)
		return s.object(map[string]any{"key": k.Key, "needed": false})
	}
	told := "nothing in Redis needs it"
	if k.Offline {
		told = "Redis was not asked whether anything in it needs it"
	}
	if err := k.confirm(ctx, s, fmt.Sprintf("Key %d opens nothing any more: %s. A journal or a backup may need it.", k.Key, told)); err != nil {
		return err
	}
	backup, err := k.change(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Disable(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset disable: %w", err)
	}
	s.say("Key %d is disabled. The file before is %s: keep it as long as backups that the key has sealed.", k.Key, backup)
	return s.object(changed{k.Key, "disabled", k.KeysetFile, backup})
}

// unneeded says no if anything in Redis is sealed by the key.
func (k *keysetDisable) unneeded(ctx context.Context) error {
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
	var needed []string
	if n := counts[k.Key]; n > 0 {
		needed = append(needed, "something of "+count(n, "grant"))
	}
	if mark == k.Key {
		needed = append(needed, "the mark by which a keyset is known in Redis")
	}
	if len(needed) > 0 {
		return fmt.Errorf("keyset disable: key %d has sealed %s: run tokenctl reseal first", k.Key, strings.Join(needed, ", and "))
	}
	if counts[0] > 0 {
		return fmt.Errorf("keyset disable: nobody knows what has sealed something of %d grants", counts[0])
	}
	return nil
}

type keysetEnable struct {
	Key uint32 `arg:"" help:"The key's id."`
	edited
}

// Help implements [kong.HelpProvider].
func (*keysetEnable) Help() string {
	return `Example:

  tokenctl keyset enable 3141592653 --keyset-file keyset.json`
}

func (k *keysetEnable) run(ctx context.Context, s *session) error {
	key, err := k.key(k.Key)
	switch {
	case err != nil:
		return err
	case key.Enabled:
		return errors.New("keyset enable: the key is enabled already")
	}
	backup, err := k.change(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Enable(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset enable: %w", err)
	}
	s.say("Key %d opens again. The file before is %s.", k.Key, backup)
	return s.object(changed{k.Key, "enabled", k.KeysetFile, backup})
}
