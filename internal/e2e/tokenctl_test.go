package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/seal"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoom"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// operator runs tokenctl on a stack, and keeps its output to search it for secrets.
type operator struct {
	*stack
	t       *testing.T
	dir     string
	env     []string
	printed strings.Builder
	client  registrarv1.RegistrarServiceClient
	base    string
}

// startOperator runs a token server and a registrar with additional settings, and returns
// an operator.
func startOperator(t *testing.T, life time.Duration, env ...string) *operator {
	t.Helper()
	o := &operator{stack: newStack(t, life), t: t, dir: t.TempDir()}
	o.stack.env = append(append(o.stack.env, "REFRESH_BEFORE=130s", "RELOAD_INTERVAL=100ms"), env...)
	_, o.base, _ = o.tokenServer()
	var p *process
	p, o.client, _ = o.registrar(o.base)
	o.env = append(o.stack.env, "CALLBACK_BASE_URL="+o.base, "REGISTRAR_ADDR="+p.await(`"grpc":"([^"]+)"`), "REGISTRAR_INSECURE=true")
	t.Cleanup(o.wantNoSecretPrinted)
	return o
}

// wantNoSecretPrinted searches the output for secrets.
func (o *operator) wantNoSecretPrinted() {
	printed := o.printed.String()
	secrets := []string{zoomtest.DefaultClientSecret, "recall-key"}
	for _, user := range []string{"zoom-ann", "zoom-bob", "zoom-cid", "zoom-dan", "zoom-eve", "zoom-spent"} {
		secrets = append(secrets, o.zoom.RefreshTokensOf(user)...)
	}
	for _, c := range o.recall.Credentials() {
		secrets = append(secrets, c.AccessTokenCallbackURL[strings.LastIndex(c.AccessTokenCallbackURL, "/")+1:])
	}
	keyset, err := os.ReadFile(o.keyset())
	if err != nil {
		o.t.Fatal(err)
	}
	var keys struct {
		Key []struct {
			KeyData struct {
				Value string `json:"value"`
			} `json:"keyData"`
		} `json:"key"`
	}
	if err := json.Unmarshal(keyset, &keys); err != nil || len(keys.Key) == 0 {
		o.t.Fatalf("reading the keyset: %v", err)
	}
	for _, key := range keys.Key {
		secrets = append(secrets, key.KeyData.Value)
	}
	if len(printed) < 100 {
		o.t.Error("almost no output: the search for secrets proves nothing")
	}
	for i, secret := range secrets {
		if strings.Contains(printed, secret) {
			o.t.Errorf("secret %d of %d is printed", i, len(secrets))
		}
	}
}

// setting returns the value of an environment variable.
func (o *operator) setting(name string) string {
	for _, line := range o.env {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

func (o *operator) keyset() string { return o.setting("KEYSET_FILE") }

func (o *operator) url(name string) *url.URL {
	o.t.Helper()
	parsed, err := url.Parse(o.setting(name))
	if err != nil {
		o.t.Fatal(err)
	}
	return parsed
}

// envWithout returns the environment without some variables.
func (o *operator) envWithout(names ...string) []string {
	var env []string
	for _, line := range o.env {
		name, _, _ := strings.Cut(line, "=")
		if !slices.Contains(names, name) {
			env = append(env, line)
		}
	}
	return env
}

// run runs tokenctl without a terminal.
func (o *operator) run(env []string, args ...string) (status int, stdout, stderr string) {
	o.t.Helper()
	return o.runWithInput(nil, env, args...)
}

// runWithInput is run with standard input.
func (o *operator) runWithInput(stdin io.Reader, env []string, args ...string) (status int, stdout, stderr string) {
	o.t.Helper()
	command := exec.CommandContext(o.t.Context(), filepath.Join(bin, "tokenctl"), args...)
	command.Stdin = stdin
	command.Env, command.Dir = append([]string{"PATH=" + os.Getenv("PATH")}, env...), o.dir
	var out, fault bytes.Buffer
	command.Stdout, command.Stderr = &out, &fault
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		o.t.Fatal(err)
	}
	o.printed.WriteString(out.String() + fault.String())
	if strings.Contains(fault.String(), "DATA RACE") || strings.Contains(fault.String(), "goroutine ") {
		o.t.Errorf("tokenctl %v: %s", args, fault.String())
	}
	return command.ProcessState.ExitCode(), out.String(), fault.String()
}

// mustRun runs tokenctl, which must succeed, and returns its standard output.
func (o *operator) mustRun(args ...string) string {
	o.t.Helper()
	status, out, fault := o.run(o.env, args...)
	if status != 0 {
		o.t.Fatalf("tokenctl %s: exit status %d\n%s%s", strings.Join(args, " "), status, out, fault)
	}
	return out
}

// wantFailure runs tokenctl. It must end with an exit status, and its standard error must
// contain a text.
func (o *operator) wantFailure(status int, text string, args ...string) {
	o.t.Helper()
	got, out, fault := o.run(o.env, args...)
	if got != status || !strings.Contains(fault, text) {
		o.t.Errorf("tokenctl %s: exit status %d, %q; want %d, %q\n%s", strings.Join(args, " "), got, fault, status, text, out)
	}
}

// objects parses the JSON output of tokenctl, one object per line.
func objects(t *testing.T, text string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("line is not JSON: %q", line)
		}
		all = append(all, one)
	}
	return all
}

func wantContains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, one := range want {
		if !strings.Contains(text, one) {
			t.Errorf("no %q in:\n%s", one, text)
		}
	}
}

// register registers users with refresh tokens of existing grants.
func (o *operator) register(users ...string) {
	o.t.Helper()
	for _, user := range users {
		_, refresh := o.zoom.Grant(zoomtest.DefaultClientID, "zoom-"+user)
		response, err := o.client.RegisterUser(o.t.Context(), &registrarv1.RegisterUserRequest{
			UserId: user, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: refresh},
		})
		if err != nil {
			o.t.Fatal(err)
		}
		if state := response.GetUser().GetState(); state != registrarv1.State_STATE_ACTIVE {
			o.t.Fatalf("%s is %v: %s", user, state, response.GetUser().GetReason())
		}
	}
}

// openRedis opens the store at a Redis URL with the operator's keyset.
func (o *operator) openRedis(url string) (*store.Store, *store.Connection, *seal.Keyset) {
	o.t.Helper()
	text, err := os.ReadFile(o.keyset())
	if err != nil {
		o.t.Fatal(err)
	}
	keyset, err := seal.Parse(text)
	if err != nil {
		o.t.Fatal(err)
	}
	client := testkit.RedisClient(o.t, url)
	return store.New(client, keyset), client, keyset
}

func TestTokenctlInspect(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	o.register("ann", "bob", "cid")

	out := o.mustRun("doctor")
	wantContains(t, out, "ok           grants", "3 active", "ok           zoom app default", "ok           recall app default", "WARNING      callback url", "0 faults")
	verdicts := map[any]any{}
	for _, f := range objects(t, o.mustRun("doctor", "-o", "json")) {
		verdicts[f["check"]] = f["verdict"]
	}
	if verdicts["redis"] != "ok" || verdicts["registrar"] != "warning" || verdicts["journal"] != "not_checked" {
		t.Errorf("verdicts: %v", verdicts)
	}
	status, out, fault := o.run(append(o.env, "ZOOM_CLIENT_SECRET=wrong", "JOURNAL_DIR=", "KEYSET_FILE=/missing"), "doctor")
	if status != 1 {
		t.Errorf("doctor with wrong settings: exit status %d", status)
	}
	wantContains(t, out, "FAULT        setting KEYSET_FILE", "the file cannot be read", "FAULT        setting JOURNAL_DIR", "FAULT        zoom app default", "  → ", "ok           redis")
	wantContains(t, fault, "faults in 21 checks")

	for _, env := range [][]string{o.env, o.envWithout("REGISTRAR_ADDR")} { // through the registrar, and through Redis
		status, out, fault := o.run(env, "users", "list")
		if status != 0 {
			t.Fatal(fault)
		}
		wantContains(t, out, "USER", "ann", "bob", "cid", "active")
		_, out, _ = o.run(env, "users", "list", "-o", "json", "--limit", "2")
		if all := objects(t, out); len(all) != 2 || all[0]["state"] != "STATE_ACTIVE" || all[0]["zoom_app"] != "default" || !isText(all[0]["recall_credential_id"]) {
			t.Errorf("listed as %v", all)
		}
		_, out, _ = o.run(env, "users", "list", "--state", "degraded")
		wantContains(t, out, "no users")
		_, out, _ = o.run(env, "users", "get", "ann")
		wantContains(t, out, "zoom-ann", "active", "access token expire time")
		if status, _, fault := o.run(env, "users", "get", "unknown"); status != 1 || !strings.Contains(fault, "tokenctl: there is no such user") {
			t.Errorf("unknown user: exit status %d, %s", status, fault)
		}
	}
	_, out, _ = o.run(o.envWithout("REGISTRAR_ADDR"), "users", "get", "ann", "-o", "json")
	if one := objects(t, out)[0]; one["user_id"] != "ann" || one["renewal"].(map[string]any)["due_time"] == nil {
		t.Errorf("read from Redis: %v", one)
	}
	o.wantFailure(2, "unexpected argument nonsense", "users", "nonsense")
	o.wantFailure(2, "--output must be one of", "users", "list", "-o", "xml")
	for _, of := range []string{"list", "watch"} {
		status, _, fault := o.run(o.env, "users", of, "--state", "gone")
		if status != 2 || !strings.Contains(fault, `"deleting" but got "gone"`) || strings.Contains(fault, `""`) {
			t.Errorf("unknown state: exit status %d, %s", status, fault)
		}
	}
	if status, _, fault := o.run(nil, "users", "list"); status != 2 || !strings.Contains(fault, "REDIS_URL: is required") {
		t.Errorf("without settings: exit status %d, %s", status, fault)
	}
	// A command does not validate the settings of other commands.
	if status, _, fault := o.run(append(o.env, "RECALL_RATE_LIMIT=nonsense"), "users", "list"); status != 0 {
		t.Errorf("invalid setting of another command: exit status %d, %s", status, fault)
	}

	wantContains(t, o.mustRun("grants", "due", "--within", "1h"), "ann", "bob", "cid", "in ")
	wantContains(t, o.mustRun("grants", "due", "--within", "0s"), "nothing is due")
	wantContains(t, o.mustRun("grants", "due", "--within", "1h", "--limit", "1"), "and 2 more")
	wantContains(t, o.mustRun("grants", "stuck"), "nothing is stuck")

	// Watch a change through the registrar and through Redis.
	var watches []*process
	for _, env := range [][]string{o.env, o.envWithout("REGISTRAR_ADDR")} {
		watch := launch(t, "tokenctl", env, "users", "watch")
		watch.await("watching")
		watches = append(watches, watch)
	}
	o.register("dan")
	for _, watch := range watches {
		watch.await(`dan \(default\)  active`)
		_ = watch.command.Process.Signal(syscall.SIGINT)
		if status := watch.wait(); status != 0 {
			t.Errorf("interrupted watch: exit status %d", status)
		}
		o.printed.WriteString(watch.log())
	}

	o.wantFailure(2, "--yes: is required without a terminal", "users", "deregister", "dan")
	wantContains(t, o.mustRun("users", "deregister", "dan", "--yes"), "dan removed")
	if n := len(o.recall.Credentials()); n != 3 {
		t.Errorf("%d credentials at Recall, want 3", n)
	}

	// A requested renewal is refused in the first tenth of a token's lifetime.
	o.wantFailure(1, "access token is fresh", "users", "refresh", "ann")
	_, client, _ := o.openRedis(o.redis.URL())
	id := grant.NewID("default", "ann")
	record := fmt.Sprintf("tp1:{s%03d}:grant:%s", id.Shard(), id)
	older := -10 * time.Minute.Milliseconds()
	if refreshed, err := client.HIncrBy(t.Context(), record, "refreshed", older).Result(); err != nil || refreshed <= 0 {
		t.Fatalf("refreshed: %d, %v", refreshed, err)
	}
	before := o.zoom.RefreshesOf("zoom-ann")
	wantContains(t, o.mustRun("users", "refresh", "ann"), "renewed; the token expires")
	if o.zoom.RefreshesOf("zoom-ann") <= before {
		t.Error("no refresh at Zoom")
	}
	o.wantFailure(1, "no such grant", "users", "refresh", "unknown")
}

func TestTokenctlIndexRebuild(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	o.register("ann", "bob")
	grants, client, _ := o.openRedis(o.redis.URL())
	id := grant.NewID("default", "ann")
	shard := fmt.Sprintf("tp1:{s%03d}:", id.Shard())
	if n, err := client.ZRem(t.Context(), shard+"due:"+id.AppTag(), string(id)).Result(); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if _, out, _ := o.run(o.envWithout("REGISTRAR_ADDR"), "users", "get", "ann", "-o", "json"); strings.Contains(out, "due_time") {
		t.Fatal("the grant still has a due time")
	}
	wantContains(t, o.mustRun("index", "rebuild"), "rebuilt from 2 grants")
	if n := objects(t, o.mustRun("index", "rebuild", "-o", "json"))[0]["grants"]; n != 2.0 {
		t.Errorf("rebuilt from %v grants", n)
	}
	wantContains(t, o.mustRun("grants", "due", "--within", "2h"), "ann", "bob")

	// Zoom is down: the grant is stuck, and tokenctl doctor reports it.
	o.zoom.Fail("/oauth/token", -1, zoomtest.Fault{Status: 503})
	if err := client.HSet(t.Context(), shard+"grant:"+string(id), "refreshed", "1000").Err(); err != nil { // long ago
		t.Fatal(err)
	}
	o.wantFailure(1, "renewal failed: the user is degraded", "users", "refresh", "ann")
	out := o.mustRun("grants", "stuck", "-o", "json")
	if all := objects(t, out); len(all) != 1 || all[0]["stuck"] != "uncertain" && all[0]["stuck"] != "failing" || all[0]["user_id"] != "ann" {
		t.Errorf("stuck: %s", out)
	}
	status, out, _ := o.run(o.env, "doctor")
	if status != 1 {
		t.Errorf("doctor: exit status %d", status)
	}
	wantContains(t, out, "1 active, 1 degraded", "WARNING      zoom app default", "503")
	o.zoom.Heal()
	waitUntil(t, "the grant is renewed", 60*time.Second, func() bool {
		_, out, _ := o.run(o.env, "grants", "stuck")
		return strings.Contains(out, "nothing is stuck")
	})
	g, err := grants.Get(t.Context(), id)
	if err != nil || g.State != grant.StateActive {
		t.Errorf("the grant is %s, %v", g.State, err)
	}
}

func TestTokenctlJournalReplay(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	o.register("ann")
	grants, _, keyset := o.openRedis(o.redis.URL())
	id := grant.NewID("default", "ann")
	before, err := grants.ReadRefreshToken(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	// A process spent the token and journaled the response, but ended before the commit.
	access, refresh := o.zoom.Grant(zoomtest.DefaultClientID, "zoom-ann")
	dir := filepath.Join(o.dir, "journal")
	kept, err := journal.Open(dir, keyset, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	entry := journal.Entry{ID: id, Spent: store.RefreshFingerprint(before), Tokens: grant.Tokens{
		Access: secret.New(access), Refresh: secret.New(refresh), Issued: time.Now().Add(-2 * time.Minute), Expires: time.Now().Add(50 * time.Minute),
	}}
	consent := journal.Entry{ID: grant.NewID("default", "bob"), Spent: "of bob", App: "default", User: "bob", Tokens: entry.Tokens}
	if err := errors.Join(kept.Add(t.Context(), entry), kept.Add(t.Context(), consent)); err != nil {
		t.Fatal(err)
	}
	wantContains(t, o.mustRun("journal", "show"), "a process uses this journal", "missing", "renewal", "ann", "consent", "bob")
	o.wantFailure(1, "another process uses this journal, and commits the missing responses itself", "journal", "replay", dir)
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	status, out, _ := o.run(o.env, "doctor")
	if wantContains(t, out, "of which Redis is missing 2; no process uses this journal"); status != 1 {
		t.Errorf("doctor: exit status %d", status)
	}
	if status, out, fault := o.run(o.envWithout("REDIS_URL"), "journal", "show", "--offline", dir); status != 0 || !strings.Contains(out, "renewal") {
		t.Errorf("without Redis: exit status %d, %s%s", status, out, fault)
	}
	wantContains(t, o.mustRun("journal", "replay", dir), "2 responses, of which Redis was missing 2")
	all := objects(t, o.mustRun("journal", "replay", dir, "-o", "json"))
	if len(all) != 2 || all[0]["in_redis"] != "stored" || all[0]["in_redis_before"] != "stored" {
		t.Errorf("replayed again: %v", all)
	}
	if now, err := grants.ReadRefreshToken(t.Context(), id); err != nil || now.Reveal() != refresh {
		t.Errorf("the response is not stored: %v", err)
	}
	if g, err := grants.Get(t.Context(), consent.ID); err != nil || g.User != "bob" {
		t.Errorf("the consent is not stored: %v", err)
	}
}

func TestTokenctlReconcile(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	o.register("ann", "bob")
	for _, c := range o.recall.Credentials() {
		if c.UserID == "zoom-ann" {
			client := recall.New(recall.Config{APIURL: o.url("RECALL_API_URL"), APIKey: secret.New("recall-key"), HTTP: http.DefaultClient})
			if err := client.Delete(t.Context(), c.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := o.mustRun("reconcile", "--dry-run")
	wantContains(t, out, "missing", "ann", "1 finding; no changes made")
	if n := len(o.recall.Credentials()); n != 1 {
		t.Fatalf("a dry run changed Recall: %d credentials, want 1", n)
	}
	o.wantFailure(2, "--yes: is required", "reconcile")
	all := objects(t, o.mustRun("reconcile", "--yes", "-o", "json"))
	if len(all) != 1 || all[0]["kind"] != "missing" || all[0]["user_id"] != "ann" || all[0]["done"] != true {
		t.Errorf("findings: %v", all)
	}
	if n := len(o.recall.Credentials()); n != 2 {
		t.Errorf("%d credentials at Recall, want 2", n)
	}
	wantContains(t, o.mustRun("reconcile", "--dry-run"), "0 findings")
	grants, _, _ := o.openRedis(o.redis.URL())
	unlock, ok, err := grants.LockReconciliation(t.Context(), time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer unlock()
	o.wantFailure(1, "a registrar is reconciling", "reconcile", "--yes")
}

func TestTokenctlKeyRotation(t *testing.T) {
	t.Parallel()
	// A registrar re-encrypts 12 such intervals after a key became primary. tokenctl does
	// it before that.
	o := startOperator(t, time.Hour, "RELOAD_INTERVAL=5s")
	o.register("ann", "bob")
	keys := func() (all []map[string]any) { return objects(t, o.mustRun("keyset", "show", "-o", "json")) }
	old := fmt.Sprintf("%.0f", keys()[0]["key"])
	o.wantFailure(1, "is the primary key", "keyset", "disable", old, "--yes")
	o.wantFailure(2, "the keyset has no key 1", "keyset", "promote", "1", "--yes")

	added := objects(t, o.mustRun("keyset", "rotate", "-o", "json"))[0]
	young := fmt.Sprintf("%.0f", added["key"])
	if info, err := os.Stat(o.keyset()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("new keyset file: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(added["backup"].(string)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("backup of the keyset: %v, %v", info, err)
	}
	if all := keys(); len(all) != 2 || all[0]["primary"] != true || all[1]["primary"] != false || all[1]["enabled"] != true {
		t.Errorf("keys after rotate: %v", all)
	}
	wantContains(t, o.mustRun("keyset", "rotate"), "Next, after every token server", "tokenctl keyset promote")
	o.wantFailure(2, "--yes: is required", "keyset", "promote", young)
	wantContains(t, o.mustRun("keyset", "promote", young, "--yes"), "tokenctl keyset disable "+old)
	o.wantFailure(1, "is primary already", "keyset", "promote", young, "--yes")
	o.wantFailure(1, "encrypts records of 2 grants and the record that identifies the keyset: run tokenctl reencrypt first", "keyset", "disable", old, "--yes")
	o.wantFailure(1, "encrypts records of 2 grants", "keyset", "disable", old, "--check")
	wantContains(t, o.mustRun("doctor"), "it decrypts a sample of 2 grants")
	wantContains(t, o.mustRun("reencrypt"), "2 grants checked, 2 re-encrypted with key "+young)
	if again := objects(t, o.mustRun("reencrypt", "-o", "json"))[0]; again["reencrypted"] != 0.0 || again["grants"] != 2.0 || again["undecryptable"] != 0.0 {
		t.Errorf("second run: %v", again)
	}
	o.wantFailure(2, "--yes: is required", "keyset", "disable", old)
	// The operator's copy of the file is not where Redis is: --check runs near Redis, and
	// --offline near the file.
	file, err := os.ReadFile(o.keyset())
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, o.mustRun("keyset", "disable", old, "--check"), "No record in Redis needs key "+old)
	if now, err := os.ReadFile(o.keyset()); err != nil || !bytes.Equal(now, file) {
		t.Errorf("--check changed the file: %v", err)
	}
	elsewhere := filepath.Join(o.dir, "copy.json")
	if err := os.WriteFile(elsewhere, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, fault := o.run([]string{"KEYSET_FILE=" + elsewhere}, "keyset", "disable", old, "--offline", "--yes"); status != 0 || !strings.Contains(out, "is disabled") {
		t.Errorf("without Redis: exit status %d, %s%s", status, out, fault)
	}
	o.wantFailure(2, "can't be used together", "keyset", "disable", old, "--check", "--offline")
	wantContains(t, o.mustRun("keyset", "disable", old, "--yes"), "is disabled")
	o.wantFailure(1, "is disabled already", "keyset", "disable", old, "--yes")
	o.wantFailure(1, "is disabled: enable it first", "keyset", "promote", old, "--yes")
	waitUntil(t, "the registrar reads the users", 20*time.Second, func() bool {
		status, out, _ := o.run(o.env, "users", "list")
		return status == 0 && strings.Contains(out, "ann") && strings.Contains(out, "bob")
	})
	wantContains(t, o.mustRun("keyset", "enable", old), "decrypts again")
	o.wantFailure(1, "enabled already", "keyset", "enable", old)
	if copies, err := filepath.Glob(o.keyset() + ".*.bak"); err != nil || len(copies) != 5 {
		t.Errorf("backups of the keyset: %v, %v, want 5", copies, err)
	}
}

// TestTokenctlImport imports a file with each kind of error, through a registrar that is
// unavailable at first.
func TestTokenctlImport(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	token := func(user string) string {
		_, refresh := o.zoom.Grant(zoomtest.DefaultClientID, "zoom-"+user)
		return refresh
	}
	good := map[string]string{"ann": token("ann"), "bob": token("bob"), "cid": token("cid")}
	text := "user_id,zoom_app,refresh_token\n" +
		"ann,," + good["ann"] + "\n" +
		"bob,default," + good["bob"] + "\n" +
		"short,default\n" +
		",default," + good["cid"] + "\n" +
		"spent,,zoom-spent-token-planted\n" +
		"ann,," + good["cid"] + "\n" +
		"\"bad\"quote,,x\n" +
		"lost,unknown-app," + good["cid"] + "\n" +
		"cid,," + good["cid"] + "\n"
	path := filepath.Join(o.dir, "grants.csv")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o.wantFailure(2, "--yes: is required", "import", path)
	status, _, fault := o.run(append(o.env, "REGISTRAR_ADDR=127.0.0.1:1"), "import", path, "--yes", "--patience", "100ms")
	if status != 1 || !strings.Contains(fault, "run it again to continue") {
		t.Errorf("unavailable registrar: exit status %d, %s", status, fault)
	}

	status, out, fault := o.run(o.env, "import", path, "--yes", "--per-minute", "6000")
	if status != 1 || !strings.Contains(fault, "import: rejected: 6 lines") {
		t.Errorf("exit status %d, %s", status, fault)
	}
	wantContains(t, out, "9 lines: 3 registered and active, 0 pending, 0 completed before, 6 rejected",
		"4     -      2 fields, not 3", "5     -      user_id is empty", "6     spent  refresh_token: Zoom refuses it",
		"7     ann    the same user as in line 2", "8     -      not CSV", "9     lost   zoom_app: must be the name of a Zoom app")
	for _, c := range o.recall.Credentials() {
		if c.Status != "healthy" {
			t.Errorf("a credential is %s", c.Status)
		}
	}
	if strings.Contains(o.printed.String(), "planted") {
		t.Error("a token is printed")
	}
	done, err := os.ReadFile(path + ".done")
	if err != nil || strings.Contains(string(done), good["ann"]) || strings.Contains(string(done), "ann") {
		t.Errorf("the .done file is missing or names a user or a token: %v", err)
	}

	// A second run skips completed lines and imports a corrected one.
	refreshes := o.zoom.Counts().Refreshes
	text = strings.Replace(text, "spent,,zoom-spent-token-planted", "eve,,"+token("eve"), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, _ = o.run(o.env, "import", path, "--yes", "-o", "json")
	all := objects(t, out)
	if last := all[len(all)-1]; len(all) != 6 || last["completed_before"] != 3.0 || last["active"] != 1.0 || last["rejected"] != 5.0 || last["complete"] != true {
		t.Errorf("second run: %v", all)
	}
	if now := o.zoom.Counts().Refreshes; now != refreshes+1 {
		t.Errorf("%d tokens were spent, want 1", now-refreshes)
	}

	lines := filepath.Join(o.dir, "more.jsonl")
	if err := os.WriteFile(lines, []byte(`{"user_id":"dan","refresh_token":"`+token("dan")+"\"}\n\n"+`{"user_id":"x","token":"planted"}`+"\nplanted\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, _ = o.run(o.env, "import", lines, "--yes")
	wantContains(t, out, "3 lines: 1 registered and active", "3     x     a field is none of", "4     -     not a JSON object")
	wantContains(t, o.mustRun("users", "list"), "ann", "bob", "cid", "dan", "eve")
	empty := filepath.Join(o.dir, "empty.csv")
	if err := os.WriteFile(empty, []byte("user,token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, fault = o.run(o.env, "import", empty, "--yes")
	if status != 1 || out != "" || !strings.Contains(fault, "the file cannot be imported: column 1 of the header line is none of") || strings.Contains(fault, "run it again") {
		t.Errorf("file with other columns: exit status %d, %s%s", status, out, fault)
	}
	if _, out, _ := o.run(o.env, "import", empty, "--yes", "-o", "json"); objects(t, out)[0]["complete"] != false {
		t.Errorf("file with other columns: %s", out)
	}
	if _, err := os.Stat(empty + ".done"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a .done file exists without a completed line: %v", err)
	}
}

// TestTokenctlRestore: Redis and its disk are lost. After a restore, a user who was not
// renewed since the backup is active. One who was must consent again, and keeps the
// credential at Recall.
func TestTokenctlRestore(t *testing.T) {
	t.Parallel()
	o := startOperator(t, time.Hour)
	o.register("ann", "bob", "cid")
	backup := filepath.Join(o.dir, "grants.backup")
	wantContains(t, o.mustRun("export", backup), "Wrote 3 grants")
	o.wantFailure(1, "file exists: choose another name", "export", backup)
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("backup file: %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	for _, plaintext := range []string{"zoom-ann", "credential", "user"} {
		if bytes.Contains(text, []byte(plaintext)) {
			t.Errorf("the backup has %q in plaintext", plaintext)
		}
	}
	if _, out, _ := o.run(o.env, "export", "-"); strings.Count(out, "\n") != 5 {
		t.Errorf("backup on standard output: %d lines, want 5", strings.Count(out, "\n"))
	}

	// Bob's token is renewed after the backup.
	grants, _, _ := o.openRedis(o.redis.URL())
	if err := spendRefreshToken(o, grants, "bob"); err != nil {
		t.Fatal(err)
	}
	o.wantFailure(1, "this Redis has grants", "restore", backup, "--yes")
	o.redis.Kill()

	fresh := testkit.StartRedis(t)
	o.env = append(o.envWithout("REDIS_URL"), "REDIS_URL="+fresh.URL())
	o.stack.env = append(o.stack.env, "REDIS_URL="+fresh.URL())
	wantContains(t, o.mustRun("restore", backup, "--check"), "is complete: 3 grants")
	piped := func(text []byte, args ...string) (int, string, string) {
		return o.runWithInput(bytes.NewReader(text), o.env, append([]string{"restore", "-"}, args...)...)
	}
	if status, out, fault := piped(text, "--check"); status != 0 || !strings.Contains(out, "is complete: 3 grants") {
		t.Errorf("restore from standard input: exit status %d, %s%s", status, out, fault)
	}
	if status, _, fault := piped(text[:len(text)-9], "--yes"); status != 1 || !strings.Contains(fault, "the backup is incomplete or damaged") {
		t.Errorf("incomplete backup from standard input: exit status %d, %s", status, fault)
	}
	if status, _, fault := piped(text); status != 2 || !strings.Contains(fault, "--yes: is required") {
		t.Errorf("restore from standard input without --yes: exit status %d, %s", status, fault)
	}
	o.wantFailure(2, "--yes: is required", "restore", backup)
	for name, change := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"without a line": func(b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			return bytes.Join(append(lines[:2:2], lines[3:]...), nil)
		},
		"changed header": func(b []byte) []byte { return bytes.Replace(b, []byte(`"backup":"`), []byte(`"backup":"X`), 1) },
	} {
		path := filepath.Join(o.dir, "damaged")
		if err := os.WriteFile(path, change(bytes.Clone(text)), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, _, _ := o.run(o.env, "restore", path, "--yes"); status != 1 {
			t.Errorf("damaged backup (%s): exit status %d", name, status)
		}
	}
	other := filepath.Join(o.dir, "other.json")
	o.mustRun("keyset", "create", other)
	if status, _, fault := o.run(append(o.env, "KEYSET_FILE="+other), "restore", backup, "--check"); status != 1 || !strings.Contains(fault, "no key of the keyset decrypts") {
		t.Errorf("another keyset: exit status %d, %s", status, fault)
	}

	if status, out, fault := piped(text, "--yes"); status != 0 || !strings.Contains(out, "3 grants restored") {
		t.Fatalf("restore from standard input: exit status %d, %s%s", status, out, fault)
	}
	again := objects(t, o.mustRun("restore", backup, "--yes", "--resume", "-o", "json"))[0]
	if again["restored"] != 0.0 || again["present"] != 3.0 {
		t.Errorf("second run: %v", again)
	}
	direct := o.envWithout("REGISTRAR_ADDR")
	_, out, _ := o.run(direct, "users", "list", "--state", "degraded")
	wantContains(t, out, "ann", "bob", "cid", "restored from a backup of")
	_, out, _ = o.run(direct, "users", "get", "ann")
	wantContains(t, out, "uncertain", "the refresh token may be spent")

	o.tokenServer()
	states := func() map[any]any {
		_, out, _ := o.run(direct, "users", "list", "-o", "json")
		states := map[any]any{}
		for _, one := range objects(t, out) {
			states[one["user_id"]] = one["state"]
		}
		return states
	}
	waitUntil(t, "every refresh token is tried", 60*time.Second, func() bool {
		now := states()
		return now["ann"] == "STATE_ACTIVE" && now["cid"] == "STATE_ACTIVE" && now["bob"] == "STATE_REAUTHORIZATION_REQUIRED"
	})
	if n := len(o.recall.Credentials()); n != 3 {
		t.Errorf("%d credentials at Recall, want 3", n)
	}
	_, out, _ = o.run(direct, "users", "get", "bob", "-o", "json")
	if objects(t, out)[0]["recall_credential_id"] == nil {
		t.Error("bob has no credential")
	}
}

// spendRefreshToken spends a user's refresh token at Zoom, as a renewal does, without a
// change in Redis.
func spendRefreshToken(o *operator, grants *store.Store, user string) error {
	id := grant.NewID("default", user)
	refresh, err := grants.ReadRefreshToken(o.t.Context(), id)
	if err != nil {
		return err
	}
	_, err = zoom.New(zoom.Config{
		ClientID: zoomtest.DefaultClientID, ClientSecret: secret.New(zoomtest.DefaultClientSecret),
		OAuthURL: o.url("ZOOM_OAUTH_URL"), APIURL: o.url("ZOOM_API_URL"), HTTP: http.DefaultClient,
	}).Refresh(o.t.Context(), refresh)
	return err
}

// isText reports whether a JSON value is a string that is not empty.
func isText(value any) bool {
	text, ok := value.(string)
	return ok && text != ""
}
