package config_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFieldsOfTheLog: every field of a log line is in docs/operations.md, and
// every field there is in a line.
func TestFieldsOfTheLog(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## What is logged")
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[string]bool{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, match := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[1], -1) {
			documented[match[1]] = false
		}
	}
	field := regexp.MustCompile(`zap\.(?:String|Strings|Int|Int64|Uint32|Bool|Duration|Time|Stringer|NamedError|Any|Float64|Stack)\("([^"]+)"`)
	err = filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range field.FindAllStringSubmatch(string(source), -1) {
			if _, known := documented[match[1]]; !known {
				t.Errorf("%s logs the field %q, which docs/operations.md does not document", filepath.Base(path), match[1])
			}
			documented[match[1]] = true
		}
		if strings.Contains(string(source), "zap.Error(") {
			documented["error"] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, used := range documented {
		if !used {
			t.Errorf("docs/operations.md documents the field %q, which no line has", name)
		}
	}
}
