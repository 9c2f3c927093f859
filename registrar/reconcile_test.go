package registrar_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/recallvendor"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/registrar"
)

// reconciler checks credentials of every age.
func (w *world) reconciler() *registrar.Reconciler {
	return &registrar.Reconciler{Service: w.service, Vendor: recallvendor.New(w.replica.recall), Log: w.log, MinOrphanAge: time.Nanosecond, Interval: time.Minute}
}

// pass makes a pass and returns what it found: credential or user -> kind.
func (w *world) pass(r *registrar.Reconciler, dry bool) map[string]registrar.FindingKind {
	w.t.Helper()
	found := map[string]registrar.FindingKind{}
	err := r.Pass(context.Background(), dry, func(f registrar.Finding) {
		name := f.User
		if name == "" {
			name = f.Credential
		}
		found[name] = f.Kind
		if f.Detail == "" || strings.Contains(f.Detail, "/callback/") {
			w.t.Errorf("a finding says %q", f.Detail)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

func (w *world) wantFound(got, want map[string]registrar.FindingKind) {
	w.t.Helper()
	if !maps.Equal(got, want) {
		w.t.Errorf("found %v, want %v", got, want)
	}
}

func TestReconcile(t *testing.T) {
	w := surroundings(t)
	w.replica = w.join(replicaOptions{apps: []string{"second"}})
	for _, user := range []string{"ann", "bob", "cid", "dan", "eve", "fay"} {
		r := byCode(user, w.code("zoom-"+user))
		r.ZoomApp = "default"
		w.register(r)
	}
	second := byCode("ann", w.zoom.Consent("second-client", "zoom-ann", redirect, ""))
	second.ZoomApp = "second"
	w.register(second)
	credential := func(user string) string {
		response, err := w.GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: user, ZoomApp: "default"})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetUser().GetRecallCredentialId()
	}
	byUser := func() map[string]recalltest.Credential {
		all := map[string]recalltest.Credential{}
		for _, c := range w.recall.Credentials() {
			if c.OAuthApp == recalltest.DefaultOAuthApp {
				all[c.UserID] = c
			}
		}
		return all
	}

	// Nothing is amiss.
	w.wantFound(w.pass(w.reconciler(), true), nil)
	w.wantFound(w.pass(w.reconciler(), false), nil)

	// ann's is gone at Recall; bob has a second one; cid's and another have no user;
	// eve's is unhealthy; and some are not ours.
	w.deleteAtRecall(credential("ann"))
	twin := w.recall.AddCredential(recalltest.Credential{AccessTokenCallbackURL: callback.NewAddress(grant.NewID("default", "bob")).URL(w.base).Reveal(), UserID: "zoom-other"})
	cid := credential("cid")
	g, err := w.store.Get(t.Context(), grant.NewID("default", "cid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.Remove(t.Context(), g.ID, g.Version, store.ConsentOutcome{}); err != nil { // as if Redis had lost it
		t.Fatal(err)
	}
	stray := w.recall.AddCredential(recalltest.Credential{AccessTokenCallbackURL: callback.NewAddress(grant.NewID("default", "never")).URL(w.base).Reveal()})
	var foreign []string
	for _, address := range []string{
		"https://other.example/x", callback.NewAddress(grant.NewID("default", "never")).URL(parse(t, "https://tokens.example")).Reveal(),
		w.base.String() + "/other", w.base.String() + ".example" + callback.Prefix + string(grant.NewID("default", "never")) + "/" + strings.Repeat("x", 43), "",
	} {
		foreign = append(foreign, w.recall.AddCredential(recalltest.Credential{AccessTokenCallbackURL: address}).ID)
	}
	w.zoom.RevokeUser("zoom-eve")
	if _, _, err := w.recall.Callback(t.Context(), credential("eve")); err == nil {
		t.Fatal("the callback of a grant that is gone succeeds")
	}

	want := map[string]registrar.FindingKind{
		"ann": registrar.FindingMissing, twin.ID: registrar.FindingOrphan, cid: registrar.FindingOrphan, stray.ID: registrar.FindingOrphan, "eve": registrar.FindingUnhealthy,
	}
	before, changes := byUser(), w.recall.Counts()
	w.wantFound(w.pass(w.reconciler(), true), want)
	if counts := w.recall.Counts(); counts.Deletes != changes.Deletes || counts.CreateAttempts != changes.CreateAttempts || !maps.Equal(before, byUser()) {
		t.Error("a dry run has changed something at Recall")
	}
	if reason := w.reason("eve"); reason != "" {
		t.Errorf("a dry run has changed a user: %q", reason)
	}

	w.wantFound(w.pass(w.reconciler(), false), want)
	left := w.recall.Credentials()
	for _, id := range []string{twin.ID, cid, stray.ID} {
		if slices.ContainsFunc(left, func(c recalltest.Credential) bool { return c.ID == id }) {
			t.Errorf("the orphan %s is still there", id)
		}
	}
	for _, id := range foreign {
		if !slices.ContainsFunc(left, func(c recalltest.Credential) bool { return c.ID == id }) {
			t.Errorf("the foreign credential %s was removed", id)
		}
	}
	if now := byUser()["zoom-ann"]; now.ID != credential("ann") || now.ID == "" {
		t.Errorf("ann has credential %s, and Recall %s", credential("ann"), now.ID)
	}
	if reason := w.reason("eve"); !strings.HasPrefix(reason, "Recall reports the credential as unhealthy: ") || !strings.Contains(reason, "status 410") && !strings.Contains(reason, "not accepted") {
		t.Errorf("eve's reason is %q", reason)
	}

	// A repaired credential is reported as healthy. eve has consented again.
	r := byCode("eve", w.code("zoom-eve"))
	r.ZoomApp = "default"
	w.register(r)
	if _, _, err := w.recall.Callback(t.Context(), credential("eve")); err != nil {
		t.Fatal(err)
	}
	w.wantFound(w.pass(w.reconciler(), false), map[string]registrar.FindingKind{"eve": registrar.FindingHealthy})
	if reason := w.reason("eve"); reason != "" {
		t.Errorf("eve's reason is %q", reason)
	}
	w.wantFound(w.pass(w.reconciler(), false), nil)
}

func (w *world) reason(user string) string {
	w.t.Helper()
	response, err := w.GetUser(w.t.Context(), &registrarv1.GetUserRequest{UserId: user, ZoomApp: "default"})
	if err != nil {
		w.t.Fatal(err)
	}
	return response.GetUser().GetReason()
}

func (w *world) deleteAtRecall(credential string) {
	w.t.Helper()
	if err := w.replica.recall.Delete(w.t.Context(), credential); err != nil {
		w.t.Fatal(err)
	}
}

// What Recall reports about a credential is stored, returned, and sent to watchers.
func TestRecallStatusIsShown(t *testing.T) {
	w := start(t)
	user := w.register(byCode("ann", w.code("zoom-ann")))
	check := func(when string, user *registrarv1.User, status, sync string) {
		t.Helper()
		if user.GetUserId() != "ann" || user.GetRecallStatus() != status || user.GetRecallMeetingSyncStatus() != sync {
			t.Errorf("%s: %v, want %s and %s", when, user, status, sync)
		}
	}
	check("after the registration", user, "healthy", "not_started")
	all := w.watch(t, registrarv1.State_STATE_UNSPECIFIED, "")

	w.recall.SetMeetingSyncStatus(user.GetRecallCredentialId(), "in_progress")
	w.wantFound(w.pass(w.reconciler(), true), nil)
	check("after a dry run", w.get("ann"), "healthy", "not_started")
	w.wantFound(w.pass(w.reconciler(), false), nil)
	check("the watcher's", all.next().GetUser(), "healthy", "in_progress")
	check("after a pass", w.get("ann"), "healthy", "in_progress")

	response, err := w.RotateCallbackSecret(t.Context(), &registrarv1.RotateCallbackSecretRequest{UserId: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	check("a new credential's", response.GetUser(), "healthy", "not_started")

	w.zoom.RevokeUser("zoom-ann")
	if _, _, err := w.recall.Callback(t.Context(), response.GetUser().GetRecallCredentialId()); err == nil {
		t.Fatal("a callback of a revoked grant succeeds")
	}
	w.wantFound(w.pass(w.reconciler(), false), map[string]registrar.FindingKind{"ann": registrar.FindingUnhealthy})
	check("an unhealthy credential's", w.get("ann"), "unhealthy", "not_started")
}

func TestReconcileAnotherBase(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	w.register(byCode("bob", w.code("zoom-bob")))
	w.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{DropAfter: true})
	wantState(t, w.register(byCode("cid", w.code("zoom-cid"))), registrarv1.State_STATE_PENDING)

	// The token server moves to another URL; it is the same one.
	moved := parse(t, w.base.String()+"/")
	moved.Host = strings.Replace(moved.Host, "127.0.0.1", "localhost", 1)
	w.base = moved
	w.stop()
	w.replica = w.join(replicaOptions{})
	w.RegistrarServiceClient = w.replica.RegistrarServiceClient

	want := map[string]registrar.FindingKind{"ann": registrar.FindingOldBase, "bob": registrar.FindingOldBase}
	w.wantFound(w.pass(w.reconciler(), true), want)
	w.wantFound(w.pass(w.reconciler(), false), want)
	w.finish(func() bool { return w.get("cid").GetState() == registrarv1.State_STATE_ACTIVE })
	w.wantCredentials("zoom-ann", "zoom-bob", "zoom-cid")
	for _, c := range w.recall.Credentials() {
		if !strings.HasPrefix(c.AccessTokenCallbackURL, moved.String()) {
			t.Errorf("a credential of %s is still under the old URL", c.UserID)
		}
	}
	w.wantFound(w.pass(w.reconciler(), false), nil)
}

func TestReconcileAStaleSecret(t *testing.T) {
	w := start(t)
	w.register(byCode("ann", w.code("zoom-ann")))
	g, err := w.store.Get(t.Context(), grant.NewID("default", "ann"))
	if err != nil {
		t.Fatal(err)
	}
	keys := []grant.CallbackSecret{callback.NewAddress(g.ID).CallbackSecret()} // as if a restored Redis had another one
	if _, err := w.store.Change(t.Context(), g.ID, g.Version, store.Change{Secrets: &keys}); err != nil {
		t.Fatal(err)
	}
	w.wantFound(w.pass(w.reconciler(), false), map[string]registrar.FindingKind{"ann": registrar.FindingStaleSecret})
	w.wantCredentials("zoom-ann")
}

// A Redis that is empty, or another workspace at Recall, is no reason to remove
// everything, or to make it again.
func TestReconcileStopsAtTooManyDiscrepancies(t *testing.T) {
	w := start(t)
	for i := range 12 {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	if err := w.redis.Client().FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	found := 0
	err := w.reconciler().Pass(t.Context(), false, func(registrar.Finding) { found++ })
	if !errors.Is(err, registrar.ErrTooMany) || found != 0 || len(w.recall.Credentials()) != 12 {
		t.Errorf("with an empty Redis: %v, %d findings, %d credentials left", err, found, len(w.recall.Credentials()))
	}
	sure := w.reconciler()
	sure.NoDiscrepancyLimit = true
	w.pass(sure, false)
	if left := len(w.recall.Credentials()); left != 0 {
		t.Errorf("%d orphans left", left)
	}

	for i := range 12 {
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	for _, c := range w.recall.Credentials() {
		w.deleteAtRecall(c.ID)
	}
	err = w.reconciler().Pass(t.Context(), true, func(registrar.Finding) {})
	if !errors.Is(err, registrar.ErrTooMany) {
		t.Errorf("with an empty workspace: %v", err)
	}
}

func TestReconcilerRunsAndResumes(t *testing.T) {
	w := start(t)
	for i := range 8 { // three pages
		w.register(byCode(fmt.Sprint("user-", i), w.code(fmt.Sprint("zoom-", i))))
	}
	w.deleteAtRecall(w.get("user-3").GetRecallCredentialId())
	w.recall.Fail(http.MethodGet, credentialsPath, 1, recalltest.Fault{Delay: 50 * time.Millisecond})
	run := func(until func() bool) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r := w.reconciler()
			r.Interval = 50 * time.Millisecond
			r.Run(ctx)
		}()
		for end := time.Now().Add(20 * time.Second); !until(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the reconciler did not get there")
			}
		}
		cancel()
		<-ended
	}
	run(func() bool { // stopped after its first page
		progress, err := w.store.ReadReconciliation(t.Context())
		return err == nil && progress != ""
	})
	run(func() bool {
		return w.logs.FilterMessage("reconciled with Recall").Len() > 0 && w.get("user-3").GetState() == registrarv1.State_STATE_ACTIVE
	})
	w.wantCredentials("zoom-0", "zoom-1", "zoom-2", "zoom-3", "zoom-4", "zoom-5", "zoom-6", "zoom-7")
}

func TestOneReconcilesAtATime(t *testing.T) {
	w := start(t)
	unlock, ok, err := w.store.LockReconciliation(t.Context(), time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r := w.reconciler()
	r.Interval = 20 * time.Millisecond
	r.Run(ctx)
	if n := w.recall.Counts().Lists; n != 0 {
		t.Errorf("%d lists while another reconciles", n)
	}
	unlock()
}
