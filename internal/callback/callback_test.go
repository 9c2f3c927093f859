package callback_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
)

func TestAddressRoundTrip(t *testing.T) {
	id := grant.NewID("app", "user")
	for _, root := range []string{"https://tokens.example", "https://tokens.example/", "http://127.0.0.1:8080/zoom/"} {
		base, err := url.Parse(root)
		if err != nil {
			t.Fatal(err)
		}
		address := callback.NewAddress(id)
		raw := address.URL(base).Reveal()
		under, back, ok := callback.ParseURL(raw)
		if !ok || under != strings.TrimRight(root, "/") || back.ID != id || !back.Secret.Equal(address.Secret) {
			t.Errorf("under %s: the address does not parse back", root)
		}
	}
	if a, b := callback.NewAddress(id), callback.NewAddress(id); a.Secret.Equal(b.Secret) {
		t.Error("two addresses share a secret")
	}
}

func TestParseRejects(t *testing.T) {
	base, _ := url.Parse("https://tokens.example")
	address := callback.NewAddress(grant.NewID("app", "user"))
	good := address.URL(base).Reveal()
	path := strings.TrimPrefix(good, "https://tokens.example")
	if _, ok := callback.ParsePath(path); !ok {
		t.Fatal("the good path is rejected")
	}
	for _, bad := range []string{"", "/", "/callback/", path[1:], path + "/", path + "x", path[:len(path)-1], strings.Replace(path, "/callback/", "/callback//", 1), strings.ToUpper(path)} {
		if _, ok := callback.ParsePath(bad); ok {
			t.Errorf("a malformed path of %d characters is accepted", len(bad))
		}
	}
	for raw, want := range map[string]string{
		"https://tokens.example.evil" + path: "https://tokens.example.evil", "http://tokens.example" + path: "http://tokens.example", path: "",
		"https://tokens.example/callback/x" + path: "https://tokens.example/callback/x",
	} {
		if under, _, ok := callback.ParseURL(raw); !ok || under != want {
			t.Errorf("read as under %q, want %q", under, want)
		}
	}
	for _, bad := range []string{"", "https://tokens.example/callback", good + "x", "https://elsewhere.example/x"} {
		if _, _, ok := callback.ParseURL(bad); ok {
			t.Error("a URL that is no callback's is accepted")
		}
	}
}

func TestMatches(t *testing.T) {
	now := time.Unix(1000, 0)
	id := grant.NewID("app", "user")
	address, other := callback.NewAddress(id), callback.NewAddress(id)
	ended := address.CallbackSecret()
	ended.NotAfter = now
	ending := address.CallbackSecret()
	ending.NotAfter = now.Add(1)
	for name, c := range map[string]struct {
		address callback.Address
		keys    []grant.CallbackSecret
		want    bool
	}{
		"its secret":               {address, []grant.CallbackSecret{address.CallbackSecret()}, true},
		"its secret, second":       {address, []grant.CallbackSecret{other.CallbackSecret(), address.CallbackSecret()}, true},
		"its secret, about to end": {address, []grant.CallbackSecret{ending}, true},
		"its secret, ended":        {address, []grant.CallbackSecret{ended}, false},
		"another secret":           {address, []grant.CallbackSecret{other.CallbackSecret()}, false},
		"no secret":                {address, nil, false},
		"an empty fingerprint":     {address, []grant.CallbackSecret{{}}, false},
		"ended first, then alive":  {address, []grant.CallbackSecret{ended, ending}, true},
	} {
		if got := c.address.Matches(c.keys, now); got != c.want {
			t.Errorf("%s: Matches = %v, want %v", name, got, c.want)
		}
	}
}
