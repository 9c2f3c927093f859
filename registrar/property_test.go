package registrar_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/recalltest"
	"tokenprovider/internal/testkit"
	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	interleavings = flag.Int("interleavings", 12, "random interleavings of calls, deaths and faults to try")
	firstSeed     = flag.Uint64("seed", 1, "seed of the first interleaving")
)

// TestAnyInterleavingEndsRight plays random interleavings of calls for a few users
// at two registrars that die at any step, while responses of Recall are lost or are
// errors. In the end, Recall has exactly one credential for each user that should
// exist, and its URL returns a token of the right Zoom user. There is no other
// credential. No code was sent to Zoom twice, unless its response was lost with a
// registrar before it was on disk.
func TestAnyInterleavingEndsRight(t *testing.T) {
	for i := range *interleavings {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			play(t, seed)
		})
	}
}

// interleaving is one run.
type interleaving struct {
	*world
	mu        sync.Mutex
	random    *rand.Rand
	replicas  [2]*replica
	loops     sync.WaitGroup
	stop      context.CancelFunc
	ctx       context.Context //nolint:containedctx // of the loops, which start and end with replicas
	swallowed atomic.Int64    // Zoom's responses that did not reach a living registrar
	trace     []string
	began     time.Time
}

func (r *interleaving) note(format string, values ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trace = append(r.trace, fmt.Sprintf("%6.3f ", time.Since(r.began).Seconds())+fmt.Sprintf(format, values...))
}

func (r *interleaving) intn(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.random.IntN(n)
}

func play(t *testing.T, seed uint64) {
	r := &interleaving{world: surroundings(t), random: rand.New(rand.NewPCG(seed, 0)), began: time.Now()}
	r.ctx, r.stop = context.WithCancel(context.Background())
	t.Cleanup(func() {
		r.stop()
		r.loops.Wait()
	})
	for i := range r.replicas {
		r.begin(i, "")
	}
	const users, steps = 3, 6
	var callers sync.WaitGroup
	expected := make([]string, users) // Zoom user, "" for none, "?" for one or the other
	for i := range users {
		callers.Go(func() { expected[i] = r.live(fmt.Sprint("user-", i), steps) })
	}
	done := make(chan struct{})
	go func() {
		callers.Wait()
		close(done)
	}()
	r.turmoil(done)
	r.finish()
	r.judge(expected)
	if t.Failed() {
		t.Log("\n" + strings.Join(r.trace, "\n"))
	}
}

// begin starts a registrar and its loops, with the journal of the one before.
func (r *interleaving) begin(i int, folder string) {
	replica := r.join(replicaOptions{folder: folder, lateAnswer: 4 * time.Second, workTime: 1500 * time.Millisecond})
	r.mu.Lock()
	r.replicas[i] = replica
	r.mu.Unlock()
	r.loops.Go(func() { replica.service.RunUnfinished(r.ctx, 20*time.Millisecond) })
	r.loops.Go(func() { replica.rotator.Run(r.ctx) })
}

func (r *interleaving) any() *replica {
	n := r.intn(len(r.replicas))
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replicas[n]
}

// turmoil injects faults until done.
func (r *interleaving) turmoil(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(20+r.intn(150)) * time.Millisecond):
		}
		switch r.intn(6) {
		case 0:
			r.kill(r.intn(len(r.replicas)))
		case 1:
			r.recall.Fail(http.MethodPost, credentialsPath, 1, recalltest.Fault{DropAfter: true})
		case 2:
			r.recall.Fail("", credentialsPath, 1, recalltest.Fault{DropAfter: true})
		case 3:
			r.recall.Fail("", credentialsPath, 1, recalltest.Fault{Status: []int{429, 500, 503}[r.intn(3)]})
		case 4:
			r.recall.Fail("", credentialsPath, 1, recalltest.Fault{DropBefore: true})
		case 5:
			r.zoom.Fail("/v2/users/me", 1, zoomtest.Fault{Status: 503})
		}
	}
}

// kill ends a registrar at one of its next steps, and starts another with its
// journal.
func (r *interleaving) kill(i int) {
	r.mu.Lock()
	doomed := r.replicas[i]
	r.mu.Unlock()
	left := int64(r.intn(60))
	var steps atomic.Int64
	dead := make(chan struct{})
	var once sync.Once
	ends := func(call string, after bool) bool {
		if steps.Add(1) <= left {
			return false
		}
		once.Do(func() {
			r.note("registrar %d dies: %s, after %v", i, call, after)
			close(dead)
		})
		return true
	}
	doomed.life.ends.Store(&ends)
	<-dead // its loops take steps all the time
	r.begin(i, r.bury(doomed))
	r.swallowed.Add(doomed.life.swallowed.Load())
}

// live makes calls for one user, one after the other, and returns the expected
// result.
func (r *interleaving) live(user string, steps int) (expected string) {
	zoomUsers := []string{"zoom-" + user, "zoom-" + user, "zoom-" + user + "-b"}
	var last *registrarv1.RegisterUserRequest
	for range steps {
		switch step := r.intn(6); {
		case step < 3 || last == nil:
			zoomUser := zoomUsers[r.intn(len(zoomUsers))]
			last = byCode(user, r.code(zoomUser))
			switch r.call(user, "register "+zoomUser, func(ctx context.Context, c *replica) error {
				_, err := c.RegisterUser(ctx, last)
				return err
			}) {
			case codes.OK:
				expected = zoomUser
			default: // its response was lost with a registrar: no caller repeats that code
				expected, last = "?", nil
			}
		case step == 3:
			// A repeated registration succeeds, unless the user was removed.
			code := r.call(user, "repeat", func(ctx context.Context, c *replica) error {
				_, err := c.RegisterUser(ctx, last)
				return err
			})
			if code != codes.OK && expected != "" && expected != "?" {
				r.t.Errorf("%s: a repeated registration returns %v", user, code)
			}
		case step == 4:
			if code := r.call(user, "rotate", func(ctx context.Context, c *replica) error {
				_, err := c.RotateCallbackSecret(ctx, &registrarv1.RotateCallbackSecretRequest{UserId: user})
				return err
			}); code != codes.OK && expected != "" && expected != "?" {
				r.t.Errorf("%s: a rotation returns %v", user, code)
			}
		case step == 5:
			if code := r.call(user, "deregister", func(ctx context.Context, c *replica) error {
				_, err := c.DeregisterUser(ctx, &registrarv1.DeregisterUserRequest{UserId: user})
				return err
			}); code != codes.OK {
				r.t.Errorf("%s: a removal returns %v", user, code)
			}
			expected, last = "", nil
		}
	}
	return expected
}

// call repeats a call until there is a response.
func (r *interleaving) call(user, what string, call func(context.Context, *replica) error) codes.Code {
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		err := call(ctx, r.any())
		cancel()
		code := status.Code(err)
		r.note("%s: %s: %v", user, what, code)
		switch code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		default:
			return code
		}
		if time.Now().After(end) {
			r.t.Errorf("%s: %s never returned: %v", user, what, err)
			return code
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// finish ends all faults and waits until no user is unfinished.
func (r *interleaving) finish() {
	r.recall.Heal()
	r.zoom.Heal()
	client := testkit.RedisClient(r.t, r.redis.URL())
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := 0
		for shard := range grant.Shards {
			key := fmt.Sprintf("tp1:{s%03d}:work", shard)
			ids, err := client.ZRange(context.Background(), key, 0, -1).Result()
			if err != nil {
				r.t.Fatal(err)
			}
			left += len(ids)
			for _, id := range ids { // without waiting until it is due
				client.ZIncrBy(context.Background(), key, -float64(10*time.Minute.Milliseconds()), id)
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("%d users are never finished", left)
			return
		}
	}
}

func (r *interleaving) judge(expected []string) {
	have := map[string]recalltest.Credential{}
	for _, c := range r.recall.Credentials() {
		have[c.ID] = c
	}
	for i, want := range expected {
		user := fmt.Sprint("user-", i)
		response, err := r.any().GetUser(context.Background(), &registrarv1.GetUserRequest{UserId: user})
		if status.Code(err) == codes.NotFound {
			if want != "" && want != "?" {
				r.t.Errorf("%s is gone, want %s", user, want)
			}
			continue
		}
		if err != nil {
			r.t.Error(err)
			continue
		}
		got := response.GetUser()
		if want != "?" && got.GetZoomUserId() != want || got.GetState() != registrarv1.State_STATE_ACTIVE {
			r.t.Errorf("%s is %v (%s) and of %q, want it to be of %q", user, got.GetState(), got.GetReason(), got.GetZoomUserId(), want)
			continue
		}
		credential, there := have[got.GetRecallCredentialId()]
		if !there {
			r.t.Errorf("%s has no credential at Recall", user)
			continue
		}
		delete(have, credential.ID)
		token, code, err := r.recall.Callback(context.Background(), credential.ID)
		if whose, _, live := r.zoom.LookUpAccessToken(token); err != nil || !live || whose.ID != got.GetZoomUserId() || credential.UserID != whose.ID {
			r.t.Errorf("the URL of %s returns %d, live %v, of %s", user, code, live, whose.ID)
		}
	}
	for _, c := range have {
		r.t.Errorf("a credential of %s belongs to no user", c.UserID)
	}
	for _, live := range r.replicas {
		r.swallowed.Add(live.life.swallowed.Load())
	}
	if spent := r.zoom.Counts().SpentCodes; spent > int(r.swallowed.Load()) {
		r.t.Errorf("%d spent codes were presented again, and %d responses were lost", spent, r.swallowed.Load())
	}
}
