package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/keyset"
	"tokenprovider/internal/seal"
)

type keysetCreate struct {
	File         string `arg:"" help:"File to write. Must not exist."`
	KeysetKMSURI string `name:"keyset-kms-uri" env:"KEYSET_KMS_URI" placeholder:"URI" help:"KMS key that wraps the keyset: aws-kms://ARN, gcp-kms://NAME or hcvault://HOST/transit/keys/NAME. Empty: the keyset is in clear."`
}

// run writes a new keyset, readable by its owner only.
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
		return fmt.Errorf("keyset create: %w", adviseIfExists(err))
	}
	s.say("Wrote %s. Keep a safe copy: without it, every grant in Redis is lost.", k.File)
	return s.object(map[string]string{"file": k.File})
}

// editedKeyset is the keyset that a command shows or changes.
type editedKeyset struct{ app.Encryption }

// edit replaces the keyset's file with what change returns, and returns the path of
// the previous file.
func (e *editedKeyset) edit(ctx context.Context, change func(seal.Wrapping, []byte) ([]byte, error)) (backup string, err error) {
	wrapping, err := keyset.Wrapping(ctx, e.KeysetKMSURI)
	if err != nil {
		return "", err
	}
	json, err := os.ReadFile(e.KeysetFile)
	if err != nil {
		return "", err
	}
	if json, err = change(wrapping, json); err != nil {
		return "", err
	}
	return keyset.Replace(e.KeysetFile, json)
}

// key returns a key of the keyset.
func (e *editedKeyset) key(id uint32) (seal.Key, error) {
	for _, key := range e.Keyset().Keys() {
		if key.ID == id {
			return key, nil
		}
	}
	return seal.Key{}, config.Faults{fmt.Sprintf("<key>: the keyset has no key %d (see tokenctl keyset show)", id)}
}

type keysetShow struct{ editedKeyset }

// Help implements [kong.HelpProvider].
func (*keysetShow) Help() string {
	return `Prints ids and states only. For the keys that records in Redis need, see tokenctl doctor (from a sample) and tokenctl keyset disable --check.

Example:

  tokenctl keyset show --keyset-file keyset.json`
}

// keyInfo is a key in JSON.
type keyInfo struct {
	ID      uint32 `json:"key"`
	Enabled bool   `json:"enabled"`
	Primary bool   `json:"primary"`
}

func (k *keysetShow) run(_ context.Context, s *session) error {
	rows := s.table("KEY", "DECRYPTS", "ENCRYPTS")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, key := range k.Keyset().Keys() {
		if err := s.object(keyInfo{key.ID, key.Enabled, key.Primary}); err != nil {
			return err
		}
		rows.row(strconv.FormatUint(uint64(key.ID), 10), yes[key.Enabled], yes[key.Primary])
	}
	rows.flush()
	return nil
}

// keysetChange is a change of the keyset in JSON.
type keysetChange struct {
	Key    uint32 `json:"key"`
	Action string `json:"action"` // added, promoted, disabled or enabled
	File   string `json:"file"`
	Backup string `json:"backup"`
}

type keysetRotate struct{ editedKeyset }

// Help implements [kong.HelpProvider].
func (*keysetRotate) Help() string {
	return `A key is replaced in four steps: rotate adds a key that decrypts, but does not encrypt yet; promote makes it the primary key, which encrypts, after every process has reloaded the file; the registrar, or tokenctl reencrypt, re-encrypts the records of other keys; disable ends the old key. Each step keeps a copy of the previous file beside the new one. If the file is a Kubernetes Secret, change a copy and apply it.

Example:

  tokenctl keyset rotate --keyset-file keyset.json`
}

func (k *keysetRotate) run(ctx context.Context, s *session) error {
	var added uint32
	backup, err := k.edit(ctx, func(w seal.Wrapping, json []byte) (changed []byte, err error) {
		changed, added, err = w.AddKey(json)
		return changed, err
	})
	if err != nil {
		return fmt.Errorf("keyset rotate: %w", err)
	}
	s.say("Added key %d to %s. It decrypts, but does not encrypt yet. The previous file is %s.\n", added, k.KeysetFile, backup)
	s.say("Next, after every token server and registrar has reloaded the file (within RELOAD_INTERVAL; Kubernetes takes a minute or two to update it):")
	s.say("  tokenctl keyset promote %d", added)
	return s.object(keysetChange{added, "added", k.KeysetFile, backup})
}

type keysetPromote struct {
	Key uint32 `arg:"" help:"Id of the key."`
	confirmed
	editedKeyset
}

// Help implements [kong.HelpProvider].
func (*keysetPromote) Help() string {
	return `Every process must have reloaded the file with the new key before. A process that has not cannot decrypt what others write, and its callbacks fail until it has.

Example:

  tokenctl keyset promote 2718281828 --keyset-file keyset.json`
}

func (k *keysetPromote) run(ctx context.Context, s *session) error {
	key, err := k.key(k.Key)
	switch {
	case err != nil:
		return err
	case key.Primary:
		return fmt.Errorf("keyset promote: key %d is primary already", k.Key)
	case !key.Enabled:
		return fmt.Errorf("keyset promote: key %d is disabled: enable it first", k.Key)
	}
	if err := k.confirm(ctx, s, fmt.Sprintf("Key %d becomes the primary key, which encrypts. A process that has not reloaded it cannot decrypt what others write.", k.Key)); err != nil {
		return err
	}
	old := k.Keyset().Primary()
	backup, err := k.edit(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Promote(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset promote: %w", err)
	}
	s.say("Key %d is the primary key. The previous file is %s.\n", k.Key, backup)
	s.say("Next, the registrar re-encrypts the records of other keys, some minutes after it has reloaded the file. Or do it now, and then disable the old key:")
	s.say("  tokenctl reencrypt\n  tokenctl keyset disable %d", old)
	return s.object(keysetChange{k.Key, "promoted", k.KeysetFile, backup})
}

type keysetEnable struct {
	Key uint32 `arg:"" help:"Id of the key."`
	editedKeyset
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
	backup, err := k.edit(ctx, func(w seal.Wrapping, json []byte) ([]byte, error) { return w.Enable(json, k.Key) })
	if err != nil {
		return fmt.Errorf("keyset enable: %w", err)
	}
	s.say("Key %d decrypts again. The previous file is %s.", k.Key, backup)
	return s.object(keysetChange{k.Key, "enabled", k.KeysetFile, backup})
}
