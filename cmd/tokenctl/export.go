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
	File string `arg:"" help:"File to write; it must not exist. -: standard output."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*export) Help() string {
	return `Each grant is a line that the keyset has sealed as a whole: it opens only with the key that seals now, so keep that keyset, elsewhere. Such a backup grows old quickly: Zoom's refresh tokens work once, and each is replaced within the hour. What it keeps is which user has which credential at Recall and which URLs are answered, so that users who have to consent again keep theirs. See tokenctl restore.

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
			if err != nil { // half a backup is none
				err = errors.Join(err, os.Remove(e.File))
			}
		}()
		target = file
	}
	states, err := grants.CountByState(ctx)
	if err != nil {
		return err
	}
	all := 0
	for _, n := range states {
		all += n
	}
	progress := s.progress("grants")
	defer progress.done()
	buffered := bufio.NewWriter(target)
	writer, err := backup.NewWriter(buffered, e.Keyset())
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := grants.ReadBackup(ctx, func(dumped []store.BackupRecord) error {
		progress.at(writer.Grants(), all)
		return writer.Add(dumped)
	}); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := errors.Join(writer.End(), buffered.Flush()); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	progress.done()
	if e.File == "-" {
		return nil
	}
	s.say("Wrote %s to %s, sealed by key %d.", count(writer.Grants(), "grant"), e.File, writer.Header.Key)
	return s.object(map[string]any{"file": e.File, "grants": writer.Grants(), "key": writer.Header.Key, "time": writer.Header.Time})
}

type restore struct {
	File      string `arg:"" help:"Backup to put back. -: standard input."`
	OnlyCheck bool   `name:"check" help:"Only see whether the backup is whole and opens."`
	Resume    bool   `help:"Go on with a restore that was broken off: what is there already stays as it is."`
	confirmed
	app.Records
}

// Help implements [kong.HelpProvider].
func (*restore) Help() string {
	return `For when Redis and its disk are lost. Read this first:

Zoom's refresh tokens work once. A grant that was renewed since the backup has a spent token in it, and its user is lost until consenting again. So every grant comes back uncertain and degraded: its refresh token is tried once, and if Zoom refuses it the user has to consent again, keeping the credential at Recall and its URL. Access tokens are not put back at all.

Never restore a backup beside a system that still lives, as into a staging environment with the same Zoom app: the two would end each other's tokens, and users of both would be lost.

Before it: stop every token server and registrar, and keep their journals. After it: start them; what their journals hold comes in where the backup has the token before it. Then tokenctl doctor; deregister again who was removed since the backup (the audit log says who); tokenctl reconcile --dry-run.

Examples:

  tokenctl restore grants-2026-11-24.backup --check

  tokenctl restore grants-2026-11-24.backup

  tokenctl restore - --yes <grants-2026-11-24.backup`
}

// Spares implements [config.OptionalSettings].
func (r *restore) IsOptional(setting string) bool { return r.OnlyCheck && setting == "REDIS_URL" }

// backup opens the backup, which is read twice: once to see that it is whole. What
// comes by standard input is therefore kept in memory, sealed as it is.
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
		s.say("The backup of %s is whole: %s, sealed by key %d.", when, count(all, "grant"), header.Key)
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
		return errors.New("restore: there are grants in this Redis, newer than any backup. If they are of a restore that was broken off, say --resume")
	}
	if err := r.confirm(ctx, s, fmt.Sprintf("%d grants of %s (%s) are put back. Their refresh tokens may be spent: each is tried once, and who was renewed since has to consent again. Is the system that the backup is of dead?", all, when, ago(header.Time))); err != nil {
		return err
	}
	if err := grants.CheckKeyset(ctx); err != nil { // its mark comes first
		return fmt.Errorf("restore: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	progress := s.progress("grants")
	defer progress.done()
	reason := "restored from a backup of " + when + ": whether its refresh token still works is not known yet"
	seen, revived := 0, 0
	if _, _, err := backup.Read(file, r.Keyset(), func(_ backup.Header, dumped []store.BackupRecord) error {
		n, err := grants.Restore(ctx, dumped, reason)
		seen, revived = seen+len(dumped), revived+n
		progress.at(seen, all)
		return errors.Join(err, ctx.Err())
	}); err != nil {
		return fmt.Errorf("restore: after %d grants: %w; run it again with --resume to go on", seen, err)
	}
	progress.done()
	s.say("%d grants are back, %d were there. Each is degraded until its refresh token was tried; see: tokenctl users list --state degraded, and --state reauthorization_required.", revived, seen-revived)
	return s.object(map[string]any{"grants": seen, "restored": revived, "present": seen - revived, "time": header.Time})
}
