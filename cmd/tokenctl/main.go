// Command tokenctl inspects and repairs a deployment: users, grants, keysets, journals
// and backups.
//
// Each command has a struct of its flags, and a method run, which calls the packages
// that do the work. A file has one command, or a few of one theme.
package main

import (
	"context"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
)

const about = `Inspects and repairs a deployment: users, grants, keysets, journals and backups.

Settings have the names that they have for the programs: run it where a program runs, or with its environment. Exit status: 0 for success, 1 for a failure or a fault found by doctor, 2 for an invalid flag or setting.`

// commands are the commands of tokenctl.
type commands struct {
	Version kong.VersionFlag `help:"Print the version and exit."`
	Output  string           `short:"o" default:"text" enum:"text,json" help:"Format of results: text, or json with one object per line."`

	Doctor doctorCommand `cmd:"" help:"Check everything, and report faults with their fixes."`
	Users  struct {
		List       usersList       `cmd:"" help:"List users."`
		Get        usersGet        `cmd:"" help:"Show a user and the state of its token renewal."`
		Watch      usersWatch      `cmd:"" help:"Print users as they change, until interrupted."`
		Refresh    usersRefresh    `cmd:"" help:"Make a user's access token due for renewal now."`
		Deregister usersDeregister `cmd:"" help:"Remove a user: the credential at Recall, the grant and its secrets."`
	} `cmd:"" help:"Users."`
	Grants struct {
		Due   grantsDue   `cmd:"" help:"List the grants due for renewal next."`
		Stuck grantsStuck `cmd:"" help:"List the grants that make no progress, and the reasons."`
	} `cmd:"" help:"Grants."`
	Index struct {
		Rebuild indexRebuild `cmd:"" help:"Rebuild the indexes of due renewals and of pending registrar work from the grants."`
	} `cmd:"" help:"Indexes in Redis."`
	Journal struct {
		Show   journalShow   `cmd:"" help:"Show the responses in a journal, and whether Redis has them."`
		Replay journalReplay `cmd:"" help:"Commit to Redis the responses in the journal of a process that has ended."`
	} `cmd:"" help:"Journals: Zoom's responses that Redis may not have."`
	Reconcile reconcile `cmd:"" help:"Compare the grants with all credentials at Recall now."`
	Keyset    struct {
		Create  keysetCreate  `cmd:"" help:"Create a keyset, which encrypts the secrets in Redis."`
		Show    keysetShow    `cmd:"" help:"Show the keys of the keyset."`
		Rotate  keysetRotate  `cmd:"" help:"Add a key: the first of four steps to replace one."`
		Promote keysetPromote `cmd:"" help:"Make a key the primary key, which encrypts: the second step."`
		Disable keysetDisable `cmd:"" help:"Disable a key that no record needs: the fourth step."`
		Enable  keysetEnable  `cmd:"" help:"Enable a disabled key again."`
	} `cmd:"" help:"Keysets."`
	Reencrypt reencrypt `cmd:"" help:"Re-encrypt all records with the primary key: the third step, which the registrar also does by itself."`
	Import    importing `cmd:"" help:"Register users from a file of refresh tokens."`
	Export    export    `cmd:"" help:"Write an encrypted backup of all grants."`
	Restore   restore   `cmd:"" help:"Restore a backup into an empty Redis, after a disaster."`
	Check     check     `cmd:"" help:"Request URLs until each returns the expected status. The chart's helm test runs it."`
}

// command is one of them.
type command interface {
	run(ctx context.Context, s *session) error
}

func main() { os.Exit(app.Main("tokenctl", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c commands
	selected, err := config.ParseCommand("tokenctl", about, &c, args, stdout)
	if err != nil {
		return err
	}
	return selected.(command).run(ctx, &session{ //nolint:forcetypeassert // every command is one: the tests run them all
		stdin: os.Stdin, stdout: stdout, stderr: stderr, json: c.Output == "json",
	})
}
