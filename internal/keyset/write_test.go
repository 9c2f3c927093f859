package keyset_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"tokenprovider/internal/keyset"
)

// content returns what a file has, and checks that only its owner reads it.
func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", path, info.Mode())
	}
	return string(text)
}

func TestCreateOverwritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	if err := keyset.Create(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := keyset.Create(path, []byte("two")); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if got := content(t, path); got != "one" {
		t.Errorf("the file has %q", got)
	}
}

func TestReplaceKeepsTheKeysetBefore(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "keyset.json"), filepath.Join(t.TempDir(), "link.json")
	if err := keyset.Create(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	// What an interrupted replacement has left.
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	backup, err := keyset.Replace(link, []byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`keyset\.json\.\d{8}T\d{6}\.\d{3}\.bak$`).MatchString(backup) || filepath.Dir(backup) != filepath.Dir(path) {
		t.Errorf("the backup is %s", backup)
	}
	if got := content(t, backup); got != "one" {
		t.Errorf("the backup has %q", got)
	}
	if got := content(t, path); got != "two" {
		t.Errorf("the file has %q", got)
	}
	if target, err := os.Readlink(link); err != nil || target != path {
		t.Errorf("the link leads to %s, %v", target, err)
	}
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary file is left: %v", err)
	}
}

func TestReplaceWithoutAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	if _, err := keyset.Replace(path, []byte("two")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := keyset.Replace(path, []byte("two")); err == nil {
		t.Error("a directory is replaced")
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := keyset.Create(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path+".new", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := keyset.Replace(path, []byte("two")); err == nil {
		t.Error("replaced although the temporary file cannot be written")
	}
	if got := content(t, path); got != "one" {
		t.Errorf("the file has %q", got)
	}
}
