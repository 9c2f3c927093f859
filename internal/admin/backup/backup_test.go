package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/admin/backup"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
)

func records(n int) []store.BackupRecord {
	all := make([]store.BackupRecord, n)
	for i := range all {
		all[i] = store.BackupRecord{ID: grant.NewID("default", fmt.Sprint("user-", i)), Text: secret.New(fmt.Sprint("planted-", i))}
	}
	return all
}

// write returns a backup.
func write(t *testing.T, keyset *seal.Keyset, all []store.BackupRecord) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := backup.NewWriter(&file, keyset)
	if err != nil {
		t.Fatal(err)
	}
	half := len(all) / 2
	if err := errors.Join(w.Write(all[:half]), w.Write(all[half:]), w.Close()); err != nil {
		t.Fatal(err)
	}
	if w.Count() != len(all) {
		t.Errorf("%d grants counted, want %d", w.Count(), len(all))
	}
	return file.Bytes()
}

// TestRoundTrip: numbers of grants around the size of a batch.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	keyset := testkit.Keyset(t)
	for _, n := range []int{0, 1, 99, 100, 101, 250} {
		all := records(n)
		start := time.Now()
		file := write(t, keyset, all)
		if bytes.Contains(file, []byte("planted")) {
			t.Error("the file has a record in clear")
		}
		var got []store.BackupRecord
		header, count, err := backup.Read(bytes.NewReader(file), keyset, func(h backup.Header, batch []store.BackupRecord) error {
			if len(batch) == 0 || len(batch) > 100 {
				t.Errorf("a batch of %d grants", len(batch))
			}
			got = append(got, batch...)
			return nil
		})
		if err != nil || count != n {
			t.Errorf("%d grants, %v; want %d", count, err, n)
		}
		if header.Backup == "" || header.Version != 1 || header.Key != keyset.Primary() || header.Time.Sub(start).Abs() > time.Minute {
			t.Errorf("header %+v", header)
		}
		if !slices.EqualFunc(got, all, func(a, b store.BackupRecord) bool { return a.ID == b.ID && a.Text.Reveal() == b.Text.Reveal() }) {
			t.Errorf("%d grants differ after a round trip", n)
		}
		if _, count, err := backup.Read(bytes.NewReader(file), keyset, nil); err != nil || count != n {
			t.Errorf("check only: %d grants, %v; want %d", count, err, n)
		}
	}
}

// TestDamage: each changed file is rejected, by a check as well as by a restore.
func TestDamage(t *testing.T) {
	t.Parallel()
	keyset := testkit.Keyset(t)
	lines := bytes.SplitAfter(write(t, keyset, records(4)), []byte("\n"))
	other := bytes.SplitAfter(write(t, keyset, records(4)), []byte("\n"))
	last := len(lines) - 2 // after it there is an empty one
	with := func(i int, line []byte) [][]byte {
		changed := slices.Clone(lines)
		changed[i] = line
		return changed
	}
	flipped := func(i int) []byte {
		line := bytes.Clone(lines[i])
		at := len(line) - 10 // within the encrypted text
		line[at] = 'A' + (line[at]-'A'+1)%26
		return line
	}
	for name, c := range map[string]struct {
		lines [][]byte
		want  error
		text  string
	}{
		"empty":                    {nil, backup.ErrDamaged, "first line"},
		"no header":                {lines[1:], backup.ErrDamaged, "first line"},
		"header without a name":    {with(0, []byte("{\"version\":1}\n")), backup.ErrDamaged, "first line"},
		"header only":              {lines[:1], backup.ErrDamaged, "after 0 grants"},
		"without the end":          {lines[:last], backup.ErrDamaged, "after 4 grants"},
		"truncated after a line":   {lines[:3], backup.ErrDamaged, "after 2 grants"},
		"truncated in a line":      {with(3, lines[3][:20])[:4], backup.ErrDamaged, "line 4 is not JSON"},
		"a missing line":           {slices.Delete(slices.Clone(lines), 2, 3), backup.ErrDamaged, "lines are missing"},
		"a missing first grant":    {slices.Delete(slices.Clone(lines), 1, 2), backup.ErrDamaged, "lines are missing"},
		"a repeated line":          {slices.Insert(slices.Clone(lines), 2, lines[1]), backup.ErrDamaged, "lines are missing"},
		"another order":            {[][]byte{lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]}, backup.ErrDamaged, "lines are missing"},
		"a changed line":           {with(3, flipped(3)), backup.ErrDamaged, "line 4 cannot be decrypted"},
		"a changed end":            {with(last, flipped(last)), backup.ErrDamaged, "line 6 cannot be decrypted"},
		"a line of another backup": {with(3, other[3]), backup.ErrDamaged, "line 4 cannot be decrypted"},
		"the end of another":       {with(last, other[last]), backup.ErrDamaged, "line 6 cannot be decrypted"},
		"a changed id":             {with(3, bytes.Replace(lines[3], []byte(records(4)[2].ID), []byte(records(4)[1].ID), 1)), backup.ErrDamaged, "line 4 cannot be decrypted"},
		"a grant as the end":       {with(last, bytes.Replace(lines[3], []byte(`{`), []byte(`{"end":true,`), 1)), backup.ErrDamaged, "line 6 cannot be decrypted"},
		"another header":           {with(0, other[0]), backup.ErrKeyset, ""},
		"another version":          {with(0, bytes.Replace(lines[0], []byte(`"version":1`), []byte(`"version":2`), 1)), nil, "version 2; this program reads version 1"},
	} {
		for _, each := range []func(backup.Header, []store.BackupRecord) error{nil, func(backup.Header, []store.BackupRecord) error { return nil }} {
			_, _, err := backup.Read(bytes.NewReader(bytes.Join(c.lines, nil)), keyset, each)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v, want %v, %q", name, err, c.want, c.text)
			}
		}
	}
}

func TestAnotherKeyset(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 3} {
		file := write(t, testkit.Keyset(t), records(n))
		_, _, err := backup.Read(bytes.NewReader(file), testkit.Keyset(t), func(backup.Header, []store.BackupRecord) error {
			t.Error("a grant was decrypted with another keyset")
			return nil
		})
		if !errors.Is(err, backup.ErrKeyset) {
			t.Errorf("%d grants: %v, want %v", n, err, backup.ErrKeyset)
		}
	}
}

// TestErrorsEndTheTransfer: an error of each ends Read, in a full batch and in the last
// one; an error of the file ends writing.
func TestErrorsEndTheTransfer(t *testing.T) {
	t.Parallel()
	keyset, failure := testkit.Keyset(t), errors.New("disk full")
	for _, n := range []int{3, 250} {
		calls := 0
		_, _, err := backup.Read(bytes.NewReader(write(t, keyset, records(n))), keyset, func(backup.Header, []store.BackupRecord) error {
			calls++
			return failure
		})
		if !errors.Is(err, failure) || calls != 1 {
			t.Errorf("%d grants: %v after %d calls", n, err, calls)
		}
	}
	for lines := range 3 { // the number of lines before the failure
		file := &failing{left: lines, err: failure}
		w, err := backup.NewWriter(file, keyset)
		if err == nil {
			err = w.Write(records(1))
		}
		if err == nil {
			err = w.Close()
		}
		if !errors.Is(err, failure) {
			t.Errorf("after %d lines: %v", lines, err)
		}
	}
}

// failing is a file on which a number of writes succeed.
type failing struct {
	left int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left == 0 {
		return 0, f.err
	}
	f.left--
	return len(p), nil
}

// TestRestore: a restore into another Redis adds the missing grants, and does not
// replace one that exists.
func TestRestore(t *testing.T) {
	t.Parallel()
	keyset := testkit.Keyset(t)
	from := store.New(testkit.StartRedis(t).Client(), keyset)
	to := store.New(testkit.StartRedis(t).Client(), keyset)
	consent := func(s *store.Store, user, token string) grant.ID {
		id := grant.NewID("default", user)
		if _, err := s.AcceptConsent(t.Context(), id, grant.Consent{
			App: "default", User: user, Fingerprint: token, ZoomUser: "zoom-" + user, ZoomAccount: "a",
			Tokens: grant.Tokens{Access: secret.New("a"), Refresh: secret.New(token), Issued: time.Now(), Expires: time.Now().Add(time.Hour)},
		}, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		return id
	}
	ann, bob := consent(from, "ann", "old-ann"), consent(from, "bob", "old-bob")
	consent(to, "ann", "new-ann")
	var file bytes.Buffer
	w, err := backup.NewWriter(&file, keyset)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(from.ReadBackup(t.Context(), w.Write), w.Close()); err != nil {
		t.Fatal(err)
	}
	for again, want := range []int{1, 0} {
		restored := 0
		if _, n, err := backup.Read(bytes.NewReader(file.Bytes()), keyset, func(_ backup.Header, batch []store.BackupRecord) error {
			n, err := to.Restore(context.Background(), batch, "restored")
			restored += n
			return err
		}); err != nil || n != 2 || restored != want {
			t.Errorf("run %d: %d of %d grants restored, %v; want %d", again, restored, n, err, want)
		}
	}
	for id, want := range map[grant.ID]string{ann: "new-ann", bob: "old-bob"} {
		if token, err := to.ReadRefreshToken(t.Context(), id); err != nil || token.Reveal() != want {
			t.Errorf("the token is another than %s: %v", want, err)
		}
	}
	if g, err := to.Get(t.Context(), bob); err != nil || g.State != grant.StatePending || g.Reason != "restored" { // no credential at Recall yet
		t.Errorf("bob's grant is %s, %q, %v", g.State, g.Reason, err)
	}
	if g, err := to.Get(t.Context(), ann); err != nil || g.Reason == "restored" {
		t.Errorf("ann's grant is %s, %v", g.State, err)
	}
	var header backup.Header
	if line, _, _ := bytes.Cut(file.Bytes(), []byte("\n")); json.Unmarshal(line, &header) != nil || header.Key != keyset.Primary() {
		t.Errorf("header %+v", header)
	}
}
