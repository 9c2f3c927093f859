package tokenserver_test

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/tokenserver"
)

// TestTimingRevealsNothing compares the durations of guesses: at a credential that is
// in memory, at one that does not exist, and at no credential at all. An attacker
// on the same machine, over a kept-alive connection and with a real Redis, must
// not be able to tell them apart.
//
// The test is Mann and Whitney's: the chance that a random guess of one kind
// takes longer than one of another kind is ½ if they are alike. With n guesses
// of each kind in random order its standard error is √((2n+1)/12n²), 0.009 for n
// = 2000. A chance is called different if it is further from ½ than 0.05 and five
// errors together: alike ones fail once in more than a million runs, and one of
// 0.61 or more is found with a probability of 0.95. A callback that is served
// from memory takes another path, and must be found different: it is the control.
func TestTimingRevealsNothing(t *testing.T) {
	keyset := testkit.Keyset(t)
	grants := store.New(testkit.StartRedis(t).Client(), keyset)
	address := callback.NewAddress(grant.NewID("default", "ann"))
	now := time.Now()
	token := secret.New(string(make([]byte, 800)))
	if _, err := grants.AcceptConsent(t.Context(), address.ID, grant.Consent{App: "default", User: "ann", Tokens: grant.Tokens{
		Access: token, Refresh: token, Issued: now, Expires: now.Add(time.Hour),
	}}, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := grants.Change(t.Context(), address.ID, 1, store.Change{Secrets: &[]grant.CallbackSecret{address.CallbackSecret()}}); err != nil {
		t.Fatal(err)
	}
	cache, err := tokenserver.NewCache(grants, 100, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	cache.Synced()
	server := httptest.NewServer(tokenserver.New(tokenserver.Config{
		Cache: cache, Tokens: liveTokens{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	}))
	defer server.Close()

	const cached, wrong, unknown, malformed = 0, 1, 2, 3
	paths := []func() string{
		cached:    func() string { return path(address) },
		wrong:     func() string { return path(callback.NewAddress(address.ID)) },
		unknown:   func() string { return path(callback.NewAddress(grant.NewID("default", fmt.Sprint(rand.Uint64())))) },
		malformed: func() string { return path(address)[:60] },
	}
	const n = 2000
	times := make([][]float64, len(paths))
	order := rand.Perm(n * len(paths))
	for i, kind := range order {
		kind %= len(paths)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+paths[kind](), nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal("a guess got no response")
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if i < len(order)/10 {
			continue // the first tenth is warm-up
		}
		times[kind] = append(times[kind], float64(time.Since(began)))
	}
	bound := 0.05 + 5*math.Sqrt(float64(2*n+1)/(12*float64(n)*float64(n)))
	for name, pair := range map[string][2]int{
		"a wrong secret and an unknown credential":     {wrong, unknown},
		"a malformed URL and an unknown credential":    {malformed, unknown},
		"a wrong secret and a malformed URL":           {wrong, malformed},
		"control: a served callback and a wrong guess": {cached, wrong},
	} {
		chance := longer(times[pair[0]], times[pair[1]])
		different := math.Abs(chance-0.5) > bound
		if different != (pair[0] == cached) {
			t.Errorf("%s: the one takes longer with a chance of %.3f", name, chance)
		}
		t.Logf("%s: %.3f", name, chance)
	}
}

// longer returns the chance that a random one of a is greater than a random one of b.
func longer(a, b []float64) float64 {
	slices.Sort(b)
	wins := 0.0
	for _, x := range a {
		low, _ := slices.BinarySearch(b, x)
		high, _ := slices.BinarySearch(b, math.Nextafter(x, math.Inf(1)))
		wins += float64(low) + float64(high-low)/2
	}
	return wins / float64(len(a)*len(b))
}
