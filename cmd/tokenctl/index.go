package main

import (
	"context"

	"tokenprovider/internal/app"
	"tokenprovider/internal/grant"
)

type indexRebuild struct{ app.Records }

// Help implements [kong.HelpProvider].
func (*indexRebuild) Help() string {
	return `For grants that are not renewed although token servers run, for example after a manual write to Redis. The system keeps running. The command can be interrupted and repeated.

Example:

  tokenctl index rebuild`
}

func (i *indexRebuild) run(ctx context.Context, s *session) error {
	grants, err := i.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = i.Close() }()
	progress := s.progress("shards")
	defer progress.done()
	seen := 0
	for shard := range grant.Shards {
		n, err := grants.ReindexDue(ctx, shard)
		seen += n
		if err != nil {
			return err
		}
		progress.at(shard+1, grant.Shards)
	}
	progress.done()
	s.say("rebuilt from %s", count(seen, "grant"))
	return s.object(map[string]int{"grants": seen})
}
