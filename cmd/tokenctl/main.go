// Command tokenctl is the operator's command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"tokenprovider/internal/lifecycle"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/settings"
)

// commands is what tokenctl can do.
type commands struct {
	Version kong.VersionFlag `help:"Print the version and exit."`
	Keyset  struct {
		Create keysetCreate `cmd:"" help:"Make a keyset that seals what is kept in Redis."`
	} `cmd:"" help:"Keysets."`
	Check check `cmd:"" help:"Ask URLs until each answers with the status that is wanted. The chart's helm test runs it."`
}

type keysetCreate struct {
	File string `arg:"" help:"File to write; it must not exist."`
}

// run writes a new keyset, readable by its owner alone.
func (k *keysetCreate) run(stdout io.Writer) (err error) {
	json, err := seal.Generate()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(k.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("keyset create: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(json); err != nil {
		return fmt.Errorf("keyset create: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "Wrote %s. Keep a copy of it somewhere safe: without it every grant in Redis is lost.\n", k.File)
	return err
}

func main() { os.Exit(lifecycle.Main("tokenctl", run)) }

func run(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var c commands
	command, err := settings.ParseCommand("tokenctl", "The operator's command line.", &c, args, stdout)
	if err != nil {
		return err
	}
	if strings.HasPrefix(command, "check") {
		return c.Check.run(ctx, stdout)
	}
	return c.Keyset.Create.run(stdout)
}
