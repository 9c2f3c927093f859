package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"tokenprovider/internal/admin/bulkimport"
	"tokenprovider/internal/config"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

type importing struct {
	File        string        `arg:"" help:"CSV file with a header line, or JSON lines: user_id, zoom_app (optional) and refresh_token."`
	Format      string        `enum:"auto,csv,jsonl" default:"auto" help:"Format of the file: csv or jsonl. auto: by its name."`
	State       string        `placeholder:"FILE" help:"File with the completed lines. Empty: the file's name with .done."`
	PerMinute   int           `default:"240" help:"Maximum registrations per minute. Each uses one of RECALL_RATE_LIMIT, which all clients share."`
	Concurrency int           `default:"8" help:"Maximum concurrent registrations."`
	Patience    time.Duration `default:"5m" help:"Maximum time of retries for one line while the registrar is unavailable."`
	confirmed
	config.Registrar
}

// Help implements [kong.HelpProvider].
func (*importing) Help() string {
	return `The import spends each refresh token, because Zoom's work once: their previous holder must not use them any more, neither before nor after. It can be interrupted and repeated: completed lines are recorded, and a line whose response was lost is sent again, which is safe. Rejected lines are reported by number, never with their token, and sent again by the next run.

Examples:

  tokenctl import grants.csv

  tokenctl import grants.jsonl --per-minute 120 -o json > report.jsonl`
}

// Check implements [config.Checker].
func (i *importing) Check(fault func(setting, text string)) {
	i.Registrar.Check(fault)
	for setting, n := range map[string]int{"--per-minute": i.PerMinute, "--concurrency": i.Concurrency} {
		if n < 1 {
			fault(setting, "must be at least 1")
		}
	}
}

func (i *importing) run(ctx context.Context, s *session) error {
	if err := i.confirm(ctx, s, "Every refresh token in the file is spent. No other holder can use it afterwards."); err != nil {
		return err
	}
	file, err := os.Open(i.File)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	defer func() { _ = file.Close() }()
	format := bulkimport.Format(i.Format)
	if i.Format == "auto" {
		format = bulkimport.CSV
		if strings.HasSuffix(i.File, ".jsonl") || strings.HasSuffix(i.File, ".ndjson") || strings.HasSuffix(i.File, ".json") {
			format = bulkimport.JSONLines
		}
	}
	path := i.State
	if path == "" {
		path = i.File + ".done"
	}
	state, err := bulkimport.OpenState(path)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	defer func() { _ = state.Close() }()
	connection, err := i.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	progress := s.progress("lines")
	run := &bulkimport.Import{
		Registrar: registrarv1.NewRegistrarServiceClient(connection), State: state, Format: format,
		PerMinute: i.PerMinute, Concurrency: i.Concurrency, CallTimeout: 30 * time.Second, LineTimeout: i.Patience,
	}
	report, err := run.Run(ctx, file, func(r bulkimport.Report) { progress.at(r.Processed(), r.Lines) })
	progress.done()
	rows := s.table("LINE", "USER", "REJECTED BECAUSE")
	for _, r := range report.Rejections {
		if err := s.object(map[string]any{"line": r.Line, "user_id": r.User, "reason": r.Reason}); err != nil {
			return err
		}
		rows.row(strconv.Itoa(r.Line), r.User, r.Reason)
	}
	rows.flush()
	if !errors.Is(err, bulkimport.ErrInvalidFile) {
		s.say("%d lines: %d registered and active, %d pending, %d completed before, %d rejected",
			report.Lines, report.Active, report.Pending, report.AlreadyDone, len(report.Rejections))
	}
	if printing := s.object(map[string]any{
		"lines": report.Lines, "active": report.Active, "pending": report.Pending, "completed_before": report.AlreadyDone,
		"rejected": len(report.Rejections), "complete": err == nil,
	}); printing != nil {
		return printing
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("import: interrupted; run it again to continue")
	case errors.Is(err, bulkimport.ErrInvalidFile):
		return fmt.Errorf("import: %w; nothing was done", err)
	case err != nil:
		return fmt.Errorf("import: %w; run it again to continue", err)
	case len(report.Rejections) > 0:
		return fmt.Errorf("import: rejected: %s", count(len(report.Rejections), "line"))
	}
	return nil
}
