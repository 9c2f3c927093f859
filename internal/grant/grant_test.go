package grant_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
)

func TestIDIsStable(t *testing.T) {
	// The storage format: a change of this value loses every stored grant.
	if got, want := grant.NewID("default", "user-1"), grant.ID("kk1vrlo6ej4do2nrt84nqkts54"); got != want {
		t.Errorf("NewID = %q, want %q", got, want)
	}
	if grant.NewID("a", "bc") == grant.NewID("ab", "c") {
		t.Error("two pairs share an ID")
	}
}

func TestIDsParseAndSortByShard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users := rapid.SliceOfN(rapid.String(), 2, 20).Draw(t, "users")
		ids := make([]grant.ID, 0, len(users))
		for _, user := range users {
			id := grant.NewID("app", user)
			if parsed, ok := grant.ParseID(string(id)); !ok || parsed != id {
				t.Fatalf("ParseID(%q) = %q, %v", id, parsed, ok)
			}
			if id.Shard() < 0 || id.Shard() >= grant.Shards {
				t.Fatalf("shard %d of %q is out of range", id.Shard(), id)
			}
			ids = append(ids, id)
		}
		slices.Sort(ids)
		if !slices.IsSortedFunc(ids, func(a, b grant.ID) int { return a.Shard() - b.Shard() }) {
			t.Fatal("IDs do not sort by shard")
		}
	})
}

func TestIDsOfAnAppShareItsTag(t *testing.T) {
	one, two := grant.NewID("one", "ann"), grant.NewID("two", "ann")
	if one.AppTag() != grant.AppTag("one") || two.AppTag() != grant.AppTag("two") || one.AppTag() == two.AppTag() {
		t.Errorf("tags %q and %q, want %q and %q", one.AppTag(), two.AppTag(), grant.AppTag("one"), grant.AppTag("two"))
	}
	if grant.NewID("one", "bob").AppTag() != one.AppTag() || len(one.AppTag()) != 6 {
		t.Errorf("bob's tag is %q, ann's %q", grant.NewID("one", "bob").AppTag(), one.AppTag())
	}
}

func TestParseIDRefuses(t *testing.T) {
	good := string(grant.NewID("a", "b"))
	for _, text := range []string{"", good[1:], good + "0", strings.ToUpper(good), "w" + good[1:], good[:25] + "1", "../" + good[3:], good[:25] + "\x00"} {
		if id, ok := grant.ParseID(text); ok {
			t.Errorf("ParseID(%q) = %q, want a refusal", text, id)
		}
	}
}

func TestDue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		issued := time.Unix(1_700_000_000, 0)
		life := time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "life"))
		margin := time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "margin"))
		jitter := rapid.Float64Range(0, 0.999).Draw(t, "jitter")
		expires := issued.Add(life)
		due := grant.RenewTime(issued, expires, margin, jitter)
		if due.Before(issued.Add(life/10)) || due.After(expires) {
			t.Fatalf("due %v after the issue, for a life of %v", due.Sub(issued), life)
		}
		if plan := expires.Add(-margin); due.After(plan) && due.Sub(issued) > life/10 {
			t.Fatalf("due %v later than planned", due.Sub(plan))
		}
	})
	issued := time.Unix(0, 0)
	if got := grant.RenewTime(issued, issued.Add(time.Hour), 5*time.Minute, 0).Sub(issued); got != 55*time.Minute {
		t.Errorf("an hour's token with a margin of 5 minutes is due after %v, want 55m", got)
	}
	if got := grant.RenewTime(issued, issued.Add(time.Hour), 5*time.Minute, 0.5).Sub(issued); got != 53*time.Minute+30*time.Second {
		t.Errorf("with half the jitter it is due after %v, want 53m30s", got)
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second,
		9: 256 * time.Second, 10: 5 * time.Minute, 1 << 30: 5 * time.Minute,
	} {
		if got := grant.Backoff(failures, 0, 0); got != want {
			t.Errorf("Backoff(%d) = %v, want %v", failures, got, want)
		}
	}
	if got := grant.Backoff(3, 0.5, 0); got != 3*time.Second {
		t.Errorf("with half the jitter: %v, want 3s", got)
	}
	if got := grant.Backoff(1, 0, time.Minute); got != time.Minute {
		t.Errorf("asked for a minute: %v", got)
	}
}

func TestGoodFor(t *testing.T) {
	now := time.Unix(1000, 0)
	s := grant.ServingRecord{Access: secret.New("t"), Expires: now.Add(grant.MinTTL)}
	if !s.HasTTL(grant.MinTTL, now) {
		t.Error("120 s left must be enough")
	}
	if s.HasTTL(grant.MinTTL, now.Add(time.Nanosecond)) {
		t.Error("less than 120 s left must not be enough")
	}
	s.Access = secret.Text{}
	if s.HasTTL(0, now) {
		t.Error("no token is good for nothing")
	}
}

func TestAlive(t *testing.T) {
	for state, want := range map[grant.State]error{
		grant.StatePending: nil, grant.StateActive: nil, grant.StateDegraded: nil,
		grant.StateReauthorizationRequired: grant.ErrReauthorize, grant.StateDeleting: grant.ErrDeleting,
	} {
		if got := (&grant.ServingRecord{State: state}).CheckAlive(); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", state, got, want)
		}
	}
}

func TestStates(t *testing.T) {
	if n := len(grant.States()); n != 5 {
		t.Errorf("%d states, want the contract's 5", n)
	}
}

func TestErrorsSayHowLong(t *testing.T) {
	for _, err := range []error{&grant.HeldError{For: time.Second}, &grant.BackoffError{For: time.Second}} {
		if !strings.Contains(err.Error(), "1s") {
			t.Errorf("%q does not say how long", err)
		}
	}
}
