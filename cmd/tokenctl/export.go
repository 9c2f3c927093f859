package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"tokenprovider/internal/admin/backup"
	"tokenprovider/internal/app"
	"tokenprovider/internal/store"
)

type export struct {
	File string `arg:"" help:"File to write. Must not exist. -: standard output."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*export) Help() string {
	return `Each grant is a line, encrypted with the current primary key: keep the keyset too, in another place. A backup ages quickly: Zoom's refresh tokens work once, and each is replaced within the hour. Its value is each user's credential at Recall and callback URL: users who must consent again keep theirs. See tokenctl restore.

Example:

  tokenctl export grants-$(date +%F).backup

  kubectl exec -i deploy/token-provider-registrar -- tokenctl export - >grants.backup`
}

func (e *export) run(ctx context.Context, s *session) (err error) {
	grants, err := e.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	target := s.stdout
	if e.File != "-" {
		file, err := os.OpenFile(e.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("export: %w", adviseIfExists(err))
		}
		defer func() {
			err = errors.Join(err, file.Sync(), file.Close())
			if err != nil { // an incomplete backup is worthless
				err = errors.Join(err, os.Remove(e.File))
			}
		}()
		target = file
	}
	total, err := countGrants(ctx, grants)
	if err != nil {
		return err
	}
	progress := s.progress("grants")
	defer progress.done()
	buffered := bufio.NewWriter(target)
	writer, err := backup.NewWriter(buffered, e.Keyset())
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := grants.ReadBackup(ctx, func(dumped []store.BackupRecord) error {
		progress.at(writer.Count(), total)
		return writer.Write(dumped)
	}); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := errors.Join(writer.Close(), buffered.Flush()); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	progress.done()
	if e.File == "-" {
		return nil
	}
	s.say("Wrote %s to %s, encrypted with key %d.", count(writer.Count(), "grant"), e.File, writer.Header.Key)
	return s.object(map[string]any{"file": e.File, "grants": writer.Count(), "key": writer.Header.Key, "time": writer.Header.Time})
}

type restore struct {
	File      string `arg:"" help:"Backup to restore. -: standard input."`
	OnlyCheck bool   `name:"check" help:"Check that the backup is complete and can be decrypted, without a change."`
	Resume    bool   `help:"Continuation of an interrupted restore. Existing grants stay unchanged."`
	confirmed
	app.Records
}

// Help implements [kong.HelpProvider].
func (*restore) Help() string {
	return `For the loss of Redis and its disk. Read this first:

Zoom's refresh tokens work once. If a grant was renewed after the backup, its token in the backup is spent, and the user must consent again. So every grant is restored as uncertain and degraded: its refresh token is tried once, and if Zoom rejects it the user must consent again, and keeps the credential at Recall and its URL. Access tokens are not restored.

Never restore a backup while its system still runs, for example into a staging environment with the same Zoom app: the two would end each other's tokens, and the users of both would have to consent again.

Before: stop every token server and registrar, and keep their journals. After: start them; they replay the journal entries that follow a token of the backup. Then run tokenctl doctor; deregister the users removed since the backup (they are in the audit log); run tokenctl reconcile --dry-run.

Examples:

  tokenctl restore grants-2026-11-24.backup --check

  tokenctl restore grants-2026-11-24.backup

  tokenctl restore - --yes <grants-2026-11-24.backup`
}

// IsOptional implements [config.OptionalSettings].
func (r *restore) IsOptional(setting string) bool { return r.OnlyCheck && setting == "REDIS_URL" }

// backup opens the backup. It is read twice, first to check that it is complete, so
// standard input is kept in memory, encrypted as it is.
func (r *restore) backup(s *session) (io.ReadSeeker, func(), error) {
	if r.File == "-" {
		text, err := io.ReadAll(s.stdin)
		return bytes.NewReader(text), func() {}, err
	}
	file, err := os.Open(r.File)
	if err != nil {
		return nil, nil, err
	}
	return file, func() { _ = file.Close() }, nil
}

func (r *restore) run(ctx context.Context, s *session) error {
	file, closing, err := r.backup(s)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer closing()
	header, all, err := backup.Read(file, r.Keyset(), nil)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	when := header.Time.Format("2006-01-02 15:04") + " UTC"
	if r.OnlyCheck {
		s.say("The backup of %s is complete: %s, encrypted with key %d.", when, count(all, "grant"), header.Key)
		return s.object(map[string]any{"grants": all, "key": header.Key, "time": header.Time})
	}
	grants, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	empty, err := grants.IsEmpty(ctx)
	switch {
	case err != nil:
		return err
	case !empty && !r.Resume:
		return errors.New("restore: this Redis has grants, which are newer than the backup. Use --resume if an interrupted restore wrote them")
	}
	if err := r.confirm(ctx, s, fmt.Sprintf("Restoring %s of %s (%s). Their refresh tokens may be spent: each is tried once, and users whose token was renewed since must consent again. The system of the backup must not be running.", count(all, "grant"), when, ago(header.Time))); err != nil {
		return err
	}
	if err := grants.CheckKeyset(ctx); err != nil { // it records the keyset, before all grants
		return fmt.Errorf("restore: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	progress := s.progress("grants")
	defer progress.done()
	reason := "restored from a backup of " + when + ": the refresh token has not been tried yet"
	seen, restored := 0, 0
	if _, _, err := backup.Read(file, r.Keyset(), func(_ backup.Header, dumped []store.BackupRecord) error {
		n, err := grants.Restore(ctx, dumped, reason)
		seen, restored = seen+len(dumped), restored+n
		progress.at(seen, all)
		return errors.Join(err, ctx.Err())
	}); err != nil {
		return fmt.Errorf("restore: after %d grants: %w; run it again with --resume to continue", seen, err)
	}
	progress.done()
	s.say("%d grants restored, %d already present. Each is degraded until its refresh token is tried; see tokenctl users list --state degraded, and --state reauthorization_required.", restored, seen-restored)
	return s.object(map[string]any{"grants": seen, "restored": restored, "present": seen - restored, "time": header.Time})
}
