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
	File        string        `arg:"" help:"CSV with a first line of names, or JSON lines: user_id, zoom_app (may be missing) and refresh_token."`
	Format      string        `enum:"auto,csv,jsonl" default:"auto" help:"How the file is written: csv or jsonl. auto: by its name."`
	State       string        `placeholder:"FILE" help:"File that remembers which lines are done. Empty: the file's name and .done."`
	PerMinute   int           `default:"240" help:"Registrations a minute, at most. Each takes one of RECALL_RATE_LIMIT, which is for everybody."`
	Concurrency int           `default:"8" help:"Registrations at once."`
	Patience    time.Duration `default:"5m" help:"How long to go on with one line while the registrar cannot be reached."`
	confirmed
	config.Registrar
}

// Help implements [kong.HelpProvider].
func (*importing) Help() string {
	return `Each refresh token is spent at once, as Zoom's work once: whoever has kept them until now must not use them any more, before or after. Break it off when you like, and run it again: what is done is remembered, and a line whose answer was lost is asked for again, which is safe. Lines that are refused are reported by their number, never with their token, and tried again by the next run.

Examples:

  tokenctl import grants.csv

  tokenctl import grants.jsonl --per-minute 120 -o json > report.jsonl`
}

// Check implements [config.Checker].
func (i *importing) Check(fault func(setting, text string)) {
	i.Registrar.Check(fault)
	for setting, n := range map[string]int{"--per-minute": i.PerMinute, "--concurrency": i.Concurrency} {
		if n < 1 {
			fault(setting, "less than 1")
		}
	}
}

func (i *importing) run(ctx context.Context, s *session) error {
	if err := i.confirm(ctx, s, "Every refresh token in the file is spent: nobody else can use it after that."); err != nil {
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
		PerMinute: i.PerMinute, Concurrency: i.Concurrency, Try: 30 * time.Second, Patience: i.Patience,
	}
	report, err := run.Run(ctx, file, func(r bulkimport.Report) { progress.at(r.Seen(), r.Lines) })
	progress.done()
	rows := s.table("LINE", "USER", "REFUSED BECAUSE")
	for _, r := range report.Refusals {
		if err := s.object(map[string]any{"line": r.Line, "user_id": r.User, "reason": r.Reason}); err != nil {
			return err
		}
		rows.row(strconv.Itoa(r.Line), r.User, r.Reason)
	}
	rows.flush()
	if !errors.Is(err, bulkimport.ErrFile) {
		s.say("%d lines: %d registered and active, %d pending, %d done before, %d refused",
			report.Lines, report.Active, report.Pending, report.Before, len(report.Refusals))
	}
	if printing := s.object(map[string]any{
		"lines": report.Lines, "active": report.Active, "pending": report.Pending, "before": report.Before,
		"refused": len(report.Refusals), "complete": err == nil,
	}); printing != nil {
		return printing
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("import: broken off; run it again to go on")
	case errors.Is(err, bulkimport.ErrFile):
		return fmt.Errorf("import: %w; nothing was done", err)
	case err != nil:
		return fmt.Errorf("import: %w; run it again to go on", err)
	case len(report.Refusals) > 0:
		return fmt.Errorf("import: refused: %s", count(len(report.Refusals), "line"))
	}
	return nil
}
