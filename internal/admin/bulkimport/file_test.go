package bulkimport

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestRead: what each line of a file is taken for, and what is said of one that is
// not as it should be. Nothing of what is secret is said.
func TestRead(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 70<<10)
	for name, c := range map[string]struct {
		format Format
		text   string
		want   []string // number, user, app: fault
		fault  string
	}{
		"csv": {CSV, "user_id,refresh_token\nann,secret-1\nbob,secret-2\n", []string{"2 ann : ", "3 bob : "}, ""},
		"csv, as a spreadsheet writes it": {
			CSV, "\ufeff refresh_token , user_id,zoom_app\r\nsecret-1,ann,second\r\n", []string{"2 ann second: "}, "",
		},
		"csv without names":   {CSV, "", nil, "no first line"},
		"csv, another column": {CSV, "user_id,refresh_token,secret-3\n", nil, "column 3 of the first line is none of"},
		"csv without tokens":  {CSV, "user_id,zoom_app\nann,default\n", []string{"2 ann default: refresh_token is empty"}, ""},
		"csv, lines that are wrong": {
			CSV, "user_id,refresh_token\n,secret-1\nann,\nbob,secret-2,more\n\"cid,secret-3\n",
			[]string{"2  : user_id", "3 ann : refresh_token", "4  : 3 fields, not 2", "5  : not CSV"},
			"",
		},
		"json": {
			JSONLines, "{\"user_id\":\"ann\",\"refresh_token\":\"secret-1\"}\n\n{\"user_id\":\"bob\",\"zoom_app\":\"second\",\"refresh_token\":\"secret-2\"}\n",
			[]string{"1 ann : ", "3 bob second: "},
			"",
		},
		"json, lines that are wrong": {
			JSONLines, "{\"user_id\":\"ann\",\"token\":\"secret-1\",\"refresh_token\":\"secret-1\"}\n[1]\n{\"user_id\":\"bob\"}\n",
			[]string{"1 ann : it has a field that is none of", "2  : not a JSON object", "3 bob : refresh_token"},
			"",
		},
		"json, a line without end": {JSONLines, "{\"user_id\":\"" + long, nil, "too long"},
	} {
		for range 20 { // the fields of an object come in any order
			var got []string
			err := read(strings.NewReader(c.text), c.format, func(l Line, fault error) error {
				text := ""
				if fault != nil {
					text = fault.Error()
				}
				got = append(got, fmt.Sprintf("%d %s %s: %s", l.Number, l.User, l.App, text))
				return nil
			})
			if strings.Contains(fmt.Sprint(got, err), "secret") {
				t.Errorf("%s: a secret is told", name)
			}
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
			if (err != nil) != (c.fault != "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: %v, want %q", name, err, c.fault)
			}
			if t.Failed() {
				break
			}
		}
	}
}
