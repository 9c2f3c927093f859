package bulkimport

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestRead: the user of each line, and the problem of an invalid one, which does not
// quote a token.
func TestRead(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 70<<10)
	for name, c := range map[string]struct {
		format Format
		text   string
		want   []string // number, user, app: problem
		fault  string
	}{
		"csv": {CSV, "user_id,refresh_token\nann,secret-1\nbob,secret-2\n", []string{"2 ann : ", "3 bob : "}, ""},
		"csv of a spreadsheet": {
			CSV, "\ufeff refresh_token , user_id,zoom_app\r\nsecret-1,ann,second\r\n", []string{"2 ann second: "}, "",
		},
		"csv without a header": {CSV, "", nil, "no header line"},
		"csv, another column":  {CSV, "user_id,refresh_token,secret-3\n", nil, "column 3 of the header line is none of"},
		"csv without tokens":   {CSV, "user_id,zoom_app\nann,default\n", []string{"2 ann default: refresh_token is empty"}, ""},
		"csv, invalid lines": {
			CSV, "user_id,refresh_token\n,secret-1\nann,\nbob,secret-2,more\n\"cid,secret-3\n",
			[]string{"2  : user_id", "3 ann : refresh_token", "4  : 3 fields, not 2", "5  : not CSV"},
			"",
		},
		"json": {
			JSONLines, "{\"user_id\":\"ann\",\"refresh_token\":\"secret-1\"}\n\n{\"user_id\":\"bob\",\"zoom_app\":\"second\",\"refresh_token\":\"secret-2\"}\n",
			[]string{"1 ann : ", "3 bob second: "},
			"",
		},
		"json, invalid lines": {
			JSONLines, "{\"user_id\":\"ann\",\"token\":\"secret-1\",\"refresh_token\":\"secret-1\"}\n[1]\n{\"user_id\":\"bob\"}\n",
			[]string{"1 ann : a field is none of", "2  : not a JSON object", "3 bob : refresh_token"},
			"",
		},
		"json, a line too long": {JSONLines, "{\"user_id\":\"" + long, nil, "too long"},
	} {
		for range 20 { // the the order of map iteration varies
			var got []string
			err := read(strings.NewReader(c.text), c.format, func(l Line, problem error) error {
				text := ""
				if problem != nil {
					text = problem.Error()
				}
				got = append(got, fmt.Sprintf("%d %s %s: %s", l.Number, l.User, l.App, text))
				return nil
			})
			if strings.Contains(fmt.Sprint(got, err), "secret") {
				t.Errorf("%s: a secret is quoted", name)
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
