package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	registrations  = flag.Int("registrations", 40, "number of users to register while registrars are killed")
	registrarKills = flag.Int("registrar-kills", 6, "number of registrars to kill with SIGKILL meanwhile")
	registrarSeed  = flag.Uint64("registrar-seed", 1, "seed of the run of registrations")
)

// TestRegistrationsSurviveKills registers users at two registrars that are killed at
// random, while a tenth of Recall's responses is lost. In the end each user is active, and
// Recall has exactly one credential for each.
func TestRegistrationsSurviveKills(t *testing.T) {
	t.Parallel()
	r := startRegistrations(t)
	r.run(*registrations, *registrarKills)
	r.verify(*registrations)
	r.report(*registrations)
}

// registrationsRun is the state of the run.
type registrationsRun struct {
	*stack
	addrs   [2]string
	clients [2]registrarv1.RegistrarServiceClient
	dirs    [2]string
	env     []string

	mu        sync.Mutex
	processes [2]*process
	random    *rand.Rand

	calls, repeated, pending, reconsented, lost, kills atomic.Int64
	took                                               time.Duration
}

func startRegistrations(t *testing.T) *registrationsRun {
	t.Helper()
	r := &registrationsRun{stack: newStack(t, time.Hour), random: rand.New(rand.NewPCG(*registrarSeed, 0))}
	lossy := httptest.NewServer(http.HandlerFunc(r.serveRecall))
	t.Cleanup(lossy.Close)
	_, base, _ := r.tokenServer()
	r.env = append(slices.Clone(r.stack.env), "RECALL_API_URL="+lossy.URL, "CALLBACK_BASE_URL="+base, "GRPC_INSECURE=true")
	for i := range r.addrs {
		r.addrs[i], r.dirs[i] = freeAddr(t), t.TempDir()
		connection, err := grpc.NewClient(r.addrs[i], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = connection.Close() })
		r.clients[i] = registrarv1.NewRegistrarServiceClient(connection)
		r.launch(i)
	}
	return r
}

// serveRecall forwards a request to Recall, and drops a tenth of the responses.
func (r *registrationsRun) serveRecall(w http.ResponseWriter, request *http.Request) {
	response := httptest.NewRecorder()
	r.recall.ServeHTTP(response, request.WithContext(context.WithoutCancel(request.Context())))
	r.mu.Lock()
	lost := r.random.IntN(10) == 0
	r.mu.Unlock()
	if lost {
		r.lost.Add(1)
		panic(http.ErrAbortHandler)
	}
	for name, values := range response.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(response.Code)
	_, _ = w.Write(response.Body.Bytes())
}

func (r *registrationsRun) launch(i int) {
	p := launchQuiet(r.t, "registrar", append(slices.Clone(r.env), "GRPC_ADDR="+r.addrs[i], "JOURNAL_DIR="+r.dirs[i]))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[i] = p
}

// kill ends a random registrar as a crash does, and starts it again.
func (r *registrationsRun) kill() {
	r.mu.Lock()
	i := r.random.IntN(len(r.processes))
	p := r.processes[i]
	r.mu.Unlock()
	_ = p.command.Process.Kill()
	<-p.ended
	r.kills.Add(1)
	r.launch(i)
}

func (r *registrationsRun) run(users, kills int) {
	work := make(chan int)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for user := range work {
				r.register(user)
			}
		})
	}
	r.register(0) // waits for the registrars' pause after Redis has started
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for user := 1; user < users; user++ {
			work <- user
		}
		close(work)
		callers.Wait()
	}()
	// Spread the kills over the run, whose duration follows from Recall's rate limit.
	pace := time.Duration(float64(time.Minute) * max(1, float64(users-30)) / 270 / float64(kills+1))
	for range kills {
		time.Sleep(max(pace, 400*time.Millisecond))
		r.kill()
	}
	<-done
	waitUntil(r.t, "every user is active", 5*time.Minute, func() bool { return r.countActive() == users })
	r.took = time.Since(began)
}

// register registers a user. Like a caller, it repeats the call until it succeeds.
func (r *registrationsRun) register(user int) {
	zoomUser := fmt.Sprint("zoom-user-", user)
	code := func() string {
		return r.zoom.Consent(zoomtest.DefaultClientID, zoomUser, "https://app.example/oauth", "")
	}
	request := &registrarv1.RegisterUserRequest{UserId: fmt.Sprint("user-", user), Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{
		AuthorizationCode: &registrarv1.AuthorizationCode{Code: code(), RedirectUri: "https://app.example/oauth"},
	}}
	for try, end := 0, time.Now().Add(5*time.Minute); ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		response, err := r.clients[rand.IntN(len(r.clients))].RegisterUser(ctx, request)
		cancel()
		r.calls.Add(1)
		if try > 0 {
			r.repeated.Add(1)
		}
		switch status.Code(err) {
		case codes.OK:
			if response.GetUser().GetState() == registrarv1.State_STATE_PENDING {
				r.pending.Add(1)
			}
			return
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			time.Sleep(retryDelay(err))
		case codes.InvalidArgument: // the registrar was killed after Zoom spent the code, before the response was journaled
			r.reconsented.Add(1)
			request.GetAuthorizationCode().Code = code()
		default:
			r.t.Errorf("registering %s: %v", request.GetUserId(), err)
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("registering %s: not within 5 minutes: %v", request.GetUserId(), err)
			return
		}
	}
}

// retryDelay returns the retry delay of a gRPC error, or 200 ms.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 200 * time.Millisecond
}

// countActive returns the number of active users, or -1 if a registrar is unavailable.
func (r *registrationsRun) countActive() (n int) {
	request := &registrarv1.ListUsersRequest{PageSize: 1000, State: registrarv1.State_STATE_ACTIVE}
	for {
		page, err := r.clients[rand.IntN(len(r.clients))].ListUsers(context.Background(), request)
		if err != nil {
			return -1
		}
		n += len(page.GetUsers())
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return n
		}
	}
}

// verify checks that Recall has exactly the credentials of the users.
func (r *registrationsRun) verify(users int) {
	t := r.t
	t.Helper()
	byUser := map[string][]recalltest.Credential{}
	for _, c := range r.recall.Credentials() {
		byUser[c.UserID] = append(byUser[c.UserID], c)
	}
	for i := range users {
		zoomUser := fmt.Sprint("zoom-user-", i)
		response, err := r.clients[0].GetUser(t.Context(), &registrarv1.GetUserRequest{UserId: fmt.Sprint("user-", i)})
		if err != nil {
			t.Errorf("user-%d: %v", i, err)
			continue
		}
		has := byUser[zoomUser]
		if len(has) != 1 || has[0].ID != response.GetUser().GetRecallCredentialId() {
			t.Errorf("user-%d: state %v, credential %s; %d credentials at Recall, want that one", i, response.GetUser().GetState(), response.GetUser().GetRecallCredentialId(), len(has))
			continue
		}
		token, status, err := r.recall.Callback(t.Context(), has[0].ID)
		if owner, _, live := r.zoom.LookUpAccessToken(token); err != nil || !live || owner.ID != zoomUser {
			t.Errorf("callback of user-%d: status %d, live token: %v, owner %q", i, status, live, owner.ID)
		}
		delete(byUser, zoomUser)
	}
	if len(byUser) > 0 {
		t.Errorf("credentials of %d other Zoom users at Recall", len(byUser))
	}
	if counts := r.zoom.Counts(); counts.SpentCodes > int(r.reconsented.Load()) {
		t.Errorf("%d spent codes presented again, want at most %d, the number of new consents", counts.SpentCodes, r.reconsented.Load())
	}
}

func (r *registrationsRun) report(users int) {
	out := &strings.Builder{}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { _, _ = fmt.Fprintf(table, "%s\t%v\n", name, value) }
	recall := r.recall.Counts()
	row("users registered, active in the end", users)
	row("duration", r.took.Round(time.Second))
	row("registrars killed (kill -9)", r.kills.Load())
	row("RegisterUser calls", r.calls.Load())
	row("RegisterUser calls repeated", r.repeated.Load())
	row("OK with STATE_PENDING", r.pending.Load())
	row("Recall's responses lost", r.lost.Load())
	row("credentials created at Recall", recall.Creates)
	row("creates refused with a conflict", recall.Conflicts)
	row("pages of credentials listed", recall.Lists)
	row("requests over Recall's limits", recall.RateLimited)
	row("spent codes presented again", r.zoom.Counts().SpentCodes)
	row("users who had to consent again", r.reconsented.Load())
	_ = table.Flush()
	r.t.Log("\n" + out.String())
}
