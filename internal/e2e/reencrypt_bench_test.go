package e2e_test

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/seal"
)

// BenchmarkReencrypt replaces the key of 100,000 grants in the operator's four steps,
// under a load of callbacks.
func BenchmarkReencrypt(b *testing.B) {
	const grants = 100_000
	v := newFixture(b, grants, "--appendfsync", "everysec")
	v.env = append(v.env, "RELOAD_INTERVAL=500ms", "CACHE_SIZE=1000") // most callbacks read and decrypt
	var file string
	for _, setting := range v.env {
		if path, ok := strings.CutPrefix(setting, "KEYSET_FILE="); ok {
			file = path
		}
	}
	f := files{b, filepath.Dir(file)}
	name := filepath.Base(file)
	server, base, _ := v.tokenServer()
	registrar := launch(b, "registrar", append(slices.Clone(v.env), "GRPC_ADDR=127.0.0.1:0", "GRPC_INSECURE=true",
		"CALLBACK_BASE_URL=http://x", "RECALL_API_URL=http://127.0.0.1:1", "RECALL_API_KEY=x", "RECALL_OAUTH_APP_ID=x", "RECONCILE_INTERVAL=24h"))
	awaitLog := func(p *process, pattern string, times int) {
		b.Helper()
		waitUntil(b, p.name+" logs "+pattern, 10*time.Minute, func() bool { return strings.Count(p.log(), pattern) >= times })
	}
	awaitLog(registrar, "re-encryption complete", 1) // of the first key, at the start
	for b.Loop() {
		stop := v.load(base, 16)
		clear := seal.Wrapping{}
		json, id, err := clear.AddKey(f.read(name))
		if err != nil {
			b.Fatal(err)
		}
		f.write(name, string(json))
		awaitLog(server, "keyset reloaded", 1)
		awaitLog(registrar, "keyset reloaded", 1)
		if json, err = clear.Promote(json, id); err != nil {
			b.Fatal(err)
		}
		f.write(name, string(json))
		awaitLog(registrar, "new primary key", 2)
		began := time.Now()
		awaitLog(registrar, "re-encryption complete", 2)
		took := time.Since(began)
		keyset, err := clear.Parse(json)
		if err != nil {
			b.Fatal(err)
		}
		v.keyset.Replace(keyset)
		counts, err := v.store.CountByKey(b.Context())
		if err != nil || counts[id] != grants || len(counts) != 1 {
			b.Fatalf("records by key: %v, %v", counts, err)
		}
		for _, key := range keyset.Keys() {
			if key.ID != id {
				if json, err = clear.Disable(json, key.ID); err != nil {
					b.Fatal(err)
				}
			}
		}
		f.write(name, string(json))
		awaitLog(server, "keyset reloaded", 3)
		time.Sleep(2 * time.Second) // callbacks without the disabled key
		all := stop()
		failed := 0
		for _, s := range all {
			if s.status != http.StatusOK {
				failed++
			}
		}
		slices.SortFunc(all, func(a, b result) int { return int(a.took - b.took) })
		b.ReportMetric(float64(failed), "failed-callbacks")
		b.ReportMetric(float64(len(all)), "callbacks")
		b.ReportMetric(all[len(all)*99/100].took.Seconds()*1000, "p99-ms")
		b.ReportMetric(grants/took.Seconds(), "grants/s")
	}
}
