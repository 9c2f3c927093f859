package keyset

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Create writes a keyset to a new file, readable by its owner only.
func Create(path string, json []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator names the file
	if err != nil {
		return err
	}
	if _, err := file.Write(json); err != nil {
		return errors.Join(err, file.Close(), os.Remove(path))
	}
	return errors.Join(file.Sync(), file.Close())
}

// Replace replaces the keyset in a file atomically: a reader gets the old or the new
// one. It keeps the old keyset in a file beside it, and returns that path. If the file
// is a symbolic link, Replace replaces the link's target.
func Replace(path string, json []byte) (backup string, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	before, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	backup = path + "." + time.Now().UTC().Format("20060102T150405.000") + ".bak"
	if err := Create(backup, before); err != nil {
		return "", fmt.Errorf("writing the backup: %w", err)
	}
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := Create(next, json); err != nil {
		return "", err
	}
	if err := os.Rename(next, path); err != nil {
		return "", errors.Join(err, os.Remove(next))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return backup, errors.Join(dir.Sync(), dir.Close())
}
