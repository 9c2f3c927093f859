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
	App     string // Zoom app; may be empty if there is only one
	Refresh secret.Text
}

// Format is a file format.
type Format string

// The formats.
const (
	CSV       Format = "csv"   // RFC 4180, with a header line
	JSONLines Format = "jsonl" // one JSON object per line
)

// columns lists the names of the columns of CSV, and of the fields of JSON.
var columns = []string{"user_id", "zoom_app", "refresh_token"}

// read calls each with every line, and an error if the line is invalid. The error does
// not quote the line, which has a token. read stops at the first error that each
// returns, and returns an error if the file as a whole is invalid.
func read(file io.Reader, format Format, each func(Line, error) error) error {
	if format == JSONLines {
		return readJSON(file, each)
	}
	return readCSV(file, each)
}

func readCSV(file io.Reader, each func(Line, error) error) error {
	reader := csv.NewReader(file)
	reader.FieldsPerRecord, reader.ReuseRecord = -1, true
	header, err := reader.Read()
	if err != nil {
		return errors.New("no header line: user_id,zoom_app,refresh_token")
	}
	header = slices.Clone(header)
	header[0] = strings.TrimPrefix(header[0], "\ufeff") // byte order mark of spreadsheets
	for i, name := range header {
		header[i] = strings.TrimSpace(name)
		if !slices.Contains(columns, header[i]) {
			return fmt.Errorf("column %d of the header line is none of user_id, zoom_app and refresh_token", i+1)
		}
	}
	for {
		record, err := reader.Read()
		var invalid *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &invalid):
			if err := each(Line{Number: invalid.StartLine}, fmt.Errorf("not CSV: %w", invalid.Err)); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		number, _ := reader.FieldPos(0)
		line := Line{Number: number}
		if len(record) != len(header) {
			if err := each(line, fmt.Errorf("%d fields, not %d", len(record), len(header))); err != nil {
				return err
			}
			continue
		}
		for i, name := range header {
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
		return line, errors.New("not a JSON object of strings")
	}
	line.User = fields["user_id"] // for the report, even if the line is rejected
	for name, value := range fields {
		if !slices.Contains(columns, name) {
			return line, errors.New("a field is none of user_id, zoom_app and refresh_token")
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
