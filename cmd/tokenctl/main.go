// Command tokenctl is the operator's command line.
//
// Each command is a file of its own: the struct of its flags, and run, which wires
// it up. What a command does is in the packages that it names.
package main

import (
	"context"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
)

const about = `The operator's command line.

It takes the settings of the programs, by the same names: run it where they run, or with their environment. Exit status: 0 if all went well, 1 if something failed or doctor has found a fault, 2 if a flag or a setting is wrong.`

// commands is what tokenctl can do.
type commands struct {
	Version kong.VersionFlag `help:"Print the version and exit."`
	Output  string           `short:"o" default:"text" enum:"text,json" help:"How results are printed: text for people, or json, one object a line."`

	Doctor doctorCommand `cmd:"" help:"Look at everything, and say what is wrong and what mends it."`
	Users  struct {
		List       usersList       `cmd:"" help:"List users."`
		Get        usersGet        `cmd:"" help:"Show a user, and how the renewal of its token stands."`
		Watch      usersWatch      `cmd:"" help:"Print users as they change, until it is interrupted."`
		Refresh    usersRefresh    `cmd:"" help:"Have a user's access token renewed now."`
		Deregister usersDeregister `cmd:"" help:"Remove a user: the credential at Recall, the grant and its secrets."`
	} `cmd:"" help:"Users."`
	Grants struct {
		Due   grantsDue   `cmd:"" help:"List the grants that are to be renewed next."`
		Stuck grantsStuck `cmd:"" help:"List the grants that do not get on, and why."`
	} `cmd:"" help:"Grants."`
	Index struct {
		Rebuild indexRebuild `cmd:"" help:"Make the indexes of what is to be renewed, and of unfinished users, anew from the grants."`
	} `cmd:"" help:"Indexes in Redis."`
	Journal struct {
		Show   journalShow   `cmd:"" help:"Show what a journal has, and whether Redis has it."`
		Replay journalReplay `cmd:"" help:"Bring into Redis what the journal of a process has that does not run."`
	} `cmd:"" help:"Journals: what Zoom has answered and Redis may not have."`
	Reconcile reconcile `cmd:"" help:"Compare with all that Recall has, now."`
	Keyset    struct {
		Create  keysetCreate  `cmd:"" help:"Make a keyset that seals what is kept in Redis."`
		Show    keysetShow    `cmd:"" help:"Show the keys of the keyset."`
		Rotate  keysetRotate  `cmd:"" help:"Add a new key: the first of four steps to replace one."`
		Promote keysetPromote `cmd:"" help:"Make a key the one that seals: the second step."`
		Disable keysetDisable `cmd:"" help:"Make a key of no use, once nothing is sealed by it: the fourth step."`
		Enable  keysetEnable  `cmd:"" help:"Take keyset disable back."`
	} `cmd:"" help:"Keysets."`
	Reseal     reseal     `cmd:"" help:"Seal everything by the key that seals now: the third step, which the registrar takes by itself."`
	Import     importing  `cmd:"" help:"Register users from a file of refresh tokens."`
	Export     export     `cmd:"" help:"Write a sealed backup of all grants."`
	Restore    restore    `cmd:"" help:"Put a backup into an empty Redis, after a disaster."`
	Check      check      `cmd:"" help:"Ask URLs until each answers with the status that is wanted. The chart's helm test runs it."`
	Completion completion `cmd:"" help:"Print what lets a shell complete commands and flags."`
	Complete   complete   `cmd:"" name:"__complete" hidden:"" help:"Print how a command line may go on; the shells' scripts ask."`
}

// command is one of them.
type command interface {
	run(ctx context.Context, s *session) error
}

func main() { os.Exit(app.Main("tokenctl", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c commands
	asked, err := config.ParseCommand("tokenctl", about, &c, args, stdout)
	if err != nil {
		return err
	}
	return asked.(command).run(ctx, &session{ //nolint:forcetypeassert // every command is one: the tests run them all
		stdin: os.Stdin, stdout: stdout, stderr: stderr, json: c.Output == "json",
	})
}
