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
	registrations  = flag.Int("registrations", 40, "users to register while registrars are killed")
	registrarKills = flag.Int("registrar-kills", 6, "kill -9 of registrars meanwhile")
	registrarSeed  = flag.Uint64("registrar-seed", 1, "seed of that run")
)

// TestRegistrationsSurviveKills registers users by two registrars that are killed
// at random, while a tenth of Recall's answers is lost. In the end each user is
// active, and Recall has one credential for each and no other.
func TestRegistrationsSurviveKills(t *testing.T) {
	t.Parallel()
	r := startRegistrations(t)
	r.run(*registrations, *registrarKills)
	r.judge(*registrations)
	r.report(*registrations)
}

// registrationsRun is the run.
type registrationsRun struct {
	*stack
	addrs   [2]string
	clients [2]registrarv1.RegistrarServiceClient
	folders [2]string
	env     []string

	mu        sync.Mutex
	processes [2]*process
	random    *rand.Rand

	calls, repeated, pending, again, lost, kills atomic.Int64
	took                                         time.Duration
}

func startRegistrations(t *testing.T) *registrationsRun {
	t.Helper()
	r := &registrationsRun{stack: newStack(t, time.Hour), random: rand.New(rand.NewPCG(*registrarSeed, 0))}
	lossy := httptest.NewServer(http.HandlerFunc(r.lose))
	t.Cleanup(lossy.Close)
	_, base, _ := r.tokenServer()
	r.env = append(slices.Clone(r.stack.env), "RECALL_API_URL="+lossy.URL, "CALLBACK_BASE_URL="+base, "GRPC_INSECURE=true")
	for i := range r.addrs {
		r.addrs[i], r.folders[i] = freeAddr(t), t.TempDir()
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

// lose is Recall, of whose answers a tenth is lost.
func (r *registrationsRun) lose(w http.ResponseWriter, request *http.Request) {
	answer := httptest.NewRecorder()
	r.recall.ServeHTTP(answer, request.WithContext(context.WithoutCancel(request.Context())))
	r.mu.Lock()
	lost := r.random.IntN(10) == 0
	r.mu.Unlock()
	if lost {
		r.lost.Add(1)
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func (r *registrationsRun) launch(i int) {
	p := launchQuiet(r.t, "registrar", append(slices.Clone(r.env), "GRPC_ADDR="+r.addrs[i], "JOURNAL_DIR="+r.folders[i]))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[i] = p
}

// kill ends a registrar as a crash would, and starts it again.
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
	r.register(0) // Redis is young, and no code is spent at once
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for user := 1; user < users; user++ {
			work <- user
		}
		close(work)
		callers.Wait()
	}()
	// Spread over the run, whose pace is Recall's.
	pace := time.Duration(float64(time.Minute) * max(1, float64(users-30)) / 270 / float64(kills+1))
	for range kills {
		time.Sleep(max(pace, 400*time.Millisecond))
		r.kill()
	}
	<-ended
	until(r.t, "every user is active", 5*time.Minute, func() bool { return r.active() == users })
	r.took = time.Since(began)
}

// register is an internal service that registers a user: it repeats the call
// until it is answered.
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
			time.Sleep(retryIn(err))
		case codes.InvalidArgument: // Zoom had taken the code, and the registrar died before it had the answer on disk
			r.again.Add(1)
			request.GetAuthorizationCode().Code = code()
		default:
			r.t.Errorf("registering %s: %v", request.GetUserId(), err)
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("%s could not be registered: %v", request.GetUserId(), err)
			return
		}
	}
}

func retryIn(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 200 * time.Millisecond
}

func (r *registrationsRun) active() (n int) {
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

// judge compares what Recall has with what there should be.
func (r *registrationsRun) judge(users int) {
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
			t.Errorf("user-%d is %v with credential %s, and Recall has %d", i, response.GetUser().GetState(), response.GetUser().GetRecallCredentialId(), len(has))
			continue
		}
		token, status, err := r.recall.Callback(t.Context(), has[0].ID)
		if whose, _, live := r.zoom.LookUpAccessToken(token); err != nil || !live || whose.ID != zoomUser {
			t.Errorf("the URL of user-%d is answered %d: live token %v, of %s", i, status, live, whose.ID)
		}
		delete(byUser, zoomUser)
	}
	if len(byUser) > 0 {
		t.Errorf("%d credentials at Recall are nobody's", len(byUser))
	}
	if counts := r.zoom.Counts(); counts.SpentCodes > int(r.again.Load()) {
		t.Errorf("%d codes were presented again after they were spent, and %d users had to consent again", counts.SpentCodes, r.again.Load())
	}
}

func (r *registrationsRun) report(users int) {
	out := &strings.Builder{}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { _, _ = fmt.Fprintf(table, "%s\t%v\n", name, value) }
	recall := r.recall.Counts()
	row("users registered, active in the end", users)
	row("took", r.took.Round(time.Second))
	row("registrars killed (kill -9)", r.kills.Load())
	row("calls of RegisterUser", r.calls.Load())
	row("of these, repeated", r.repeated.Load())
	row("answered OK with STATE_PENDING", r.pending.Load())
	row("Recall's answers lost", r.lost.Load())
	row("credentials made at Recall", recall.Creates)
	row("creates refused as conflicts", recall.Conflicts)
	row("pages listed", recall.Lists)
	row("requests over Recall's limits", recall.RateLimited)
	row("spent codes presented again", r.zoom.Counts().SpentCodes)
	row("users who had to consent again", r.again.Load())
	_ = table.Flush()
	r.t.Log("\n" + out.String())
}
