// Package wording checks the words of the repository. CONTRIBUTING.md has the
// rules of its language; a test can check only the worst offences.
package wording

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// banned matches words that have a plainer or more precise replacement. A phrase
// may be wrapped, also in a comment.
var banned = regexp.MustCompile(`(?i)\b(?:told|whoever|whatever|nobody|somebody|of[\s/#*]+no[\s/#*]+use|stands?[\s/#*]+aside|makes?[\s/#*]+do|mend(?:s|ed)?)\b`)

// allowed lists the places where a banned word is the best one, with the reason. It
// has fewer than ten entries.
var allowed = []struct{ path, line, reason string }{
	{"internal/wording/wording_test.go", "var banned = ", "the ban itself"},
}

// pending lists directories whose text has not been rewritten yet. Remove a directory
// once its rewrite is complete; the test logs those without a banned word.
var pending = []string{
	"docs/",
}

func TestBannedWords(t *testing.T) {
	if len(allowed) >= 10 {
		t.Errorf("%d places are allowed to use a banned word; must be fewer than 10", len(allowed))
	}
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		t.Fatalf("locating the repository: %v", err)
	}
	dir := strings.TrimSpace(string(root))
	_, _ = os.Stat(filepath.Join(dir, ".git/index")) // a cached result of this test depends on it
	list, err := exec.Command("git", "-C", dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("listing files: %v", err)
	}
	used := make([]bool, len(allowed))
	needed := map[string]bool{}
	for path := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(dir, path))
		if os.IsNotExist(err) {
			continue // deleted, but not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range banned.FindAllIndex(text, -1) {
			if i := slices.IndexFunc(pending, func(dir string) bool { return strings.HasPrefix(path, dir) }); i >= 0 {
				needed[pending[i]] = true
				break
			}
			begin := bytes.LastIndexByte(text[:match[0]], '\n') + 1
			line, _, _ := strings.Cut(string(text[begin:]), "\n")
			i := slices.IndexFunc(allowed, func(a struct{ path, line, reason string }) bool {
				return a.path == path && strings.Contains(line, a.line)
			})
			if i >= 0 {
				used[i] = true
				continue
			}
			t.Errorf("%s:%d: %q is a banned word: %s", path, 1+bytes.Count(text[:match[0]], []byte("\n")), text[match[0]:match[1]], strings.TrimSpace(line))
		}
	}
	for _, dir := range pending {
		if !needed[dir] {
			t.Logf("%s has no banned word; remove it from the pending directories", dir)
		}
	}
	for i, a := range allowed {
		if !used[i] {
			t.Errorf("%s: no line with %q has a banned word; remove it from the list of allowed places", a.path, a.line)
		}
	}
}
