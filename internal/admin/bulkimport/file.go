package bulkimport

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"tokenprovider/internal/secret"
)

// Line is a user to register.
type Line struct {
	Number  int // in the file, from 1
	User    string
	App     string // Zoom app; may be empty where there is only one
	Refresh secret.Text
}

// Format is how a file is written.
type Format string

// The formats.
const (
	CSV       Format = "csv"   // a line of names first, separated by commas (RFC 4180)
	JSONLines Format = "jsonl" // a JSON object a line
)

// columns are the names of what a line has.
var columns = []string{"user_id", "zoom_app", "refresh_token"}

// read calls each with every line: with an error in place of a user where the line
// is not as it should be. The error quotes nothing of it. It stops at the first
// error that each returns, and at faults of the file as a whole.
func read(file io.Reader, format Format, each func(Line, error) error) error {
	if format == JSONLines {
		return readJSON(file, each)
	}
	return readCSV(file, each)
}

func readCSV(file io.Reader, each func(Line, error) error) error {
	reader := csv.NewReader(file)
	reader.FieldsPerRecord, reader.ReuseRecord = -1, true
	head, err := reader.Read()
	if err != nil {
		return errors.New("no first line with the names of the columns: user_id,zoom_app,refresh_token")
	}
	head = slices.Clone(head)
	head[0] = strings.TrimPrefix(head[0], "\ufeff") // as spreadsheets write it
	for i, name := range head {
		head[i] = strings.TrimSpace(name)
		if !slices.Contains(columns, head[i]) {
			return fmt.Errorf("column %d of the first line is none of user_id, zoom_app and refresh_token", i+1)
		}
	}
	for {
		record, err := reader.Read()
		var wrong *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &wrong):
			if err := each(Line{Number: wrong.StartLine}, fmt.Errorf("not CSV: %w", wrong.Err)); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		number, _ := reader.FieldPos(0)
		line := Line{Number: number}
		if len(record) != len(head) {
			if err := each(line, fmt.Errorf("%d fields, not %d", len(record), len(head))); err != nil {
				return err
			}
			continue
		}
		for i, name := range head {
			line.set(name, strings.TrimSpace(record[i]))
		}
		if err := each(line, line.check()); err != nil {
			return err
		}
	}
}

func readJSON(file io.Reader, each func(Line, error) error) error {
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<10)
	for number := 1; lines.Scan(); number++ {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		line, err := parseJSON(text)
		line.Number = number
		if err := each(line, err); err != nil {
			return err
		}
	}
	return lines.Err()
}

func parseJSON(text []byte) (line Line, err error) {
	var fields map[string]string
	if json.Unmarshal(text, &fields) != nil {
		return line, errors.New("not a JSON object of texts")
	}
	line.User = fields["user_id"] // whoever is told of the line wants to know whose it is
	for name, value := range fields {
		if !slices.Contains(columns, name) {
			return line, errors.New("it has a field that is none of user_id, zoom_app and refresh_token")
		}
		line.set(name, value)
	}
	return line, line.check()
}

func (l *Line) set(column, value string) {
	switch column {
	case "user_id":
		l.User = value
	case "zoom_app":
		l.App = value
	case "refresh_token":
		l.Refresh = secret.New(value)
	}
}

func (l *Line) check() error {
	switch {
	case l.User == "":
		return errors.New("user_id is empty")
	case l.Refresh.IsZero():
		return errors.New("refresh_token is empty")
	}
	return nil
}
