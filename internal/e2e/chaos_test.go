package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"tokenprovider/internal/zoomtest"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

var (
	kills     = flag.Int("kills", 40, "kill -9 of token servers in the chaos run")
	chaosSeed = flag.Uint64("chaos-seed", 1, "seed of the chaos run")
)

// TestChaos runs three token servers. It kills and stops them, kills Redis and restores
// an earlier state of it, and drops connections to Zoom before and after a rotation. A
// grant may be lost only if Zoom's response was dropped, or if the process was killed
// before the journal was synced.
func TestChaos(t *testing.T) {
	c := startChaos(t, 150)
	c.injectFaults(*kills)
	c.awaitRecovery()
	c.report()
}

const replicas = 3

// chaos is the state of the run.
type chaos struct {
	*stack
	zoomGate *gate
	gateURL  string
	public   [replicas]string // addresses
	ops      [replicas]string
	users    []string
	random   *rand.Rand

	mu       sync.Mutex
	replicas [replicas]*process
	ends     [replicas][]time.Time // when processes were killed
	faults   map[string]int

	served, refused atomic.Int64
	stop            context.CancelFunc
	callers         sync.WaitGroup
	exposure        map[float64]float64 // le -> count, including killed processes
}

// gate is a proxy in front of Zoom. It records the replica of each rotation and drops
// connections.
type gate struct {
	zoom *zoomtest.Zoom

	mu      sync.Mutex
	last    map[string]rotation // by Zoom user: the last rotation
	owners  map[string]string   // refresh token -> Zoom user
	loss    float64             // share of requests dropped, and share of responses dropped
	random  *rand.Rand
	dropped atomic.Int64
}

// rotation is a response of Zoom with a new refresh token.
type rotation struct {
	replica int
	at      time.Time
	dropped bool // by the gate
}

// ServeHTTP forwards /N/oauth/token of replica N to Zoom.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	number, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	replica, err := strconv.Atoi(number)
	if err != nil {
		g.zoom.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	form, _ := url.ParseQuery(string(body))
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.URL.Path = "/" + rest
	g.mu.Lock()
	user, before, after := g.owners[form.Get("refresh_token")], g.random.Float64() < g.loss, g.random.Float64() < g.loss
	g.mu.Unlock()
	if before {
		g.dropped.Add(1)
		panic(http.ErrAbortHandler)
	}
	response := httptest.NewRecorder()
	// Zoom processes the request even if the client disconnects.
	g.zoom.ServeHTTP(response, r.WithContext(context.WithoutCancel(r.Context())))
	if _, token, ok := strings.Cut(response.Body.String(), `"refresh_token":"`); ok && response.Code == http.StatusOK {
		token, _, _ = strings.Cut(token, `"`)
		g.mu.Lock()
		g.owners[token] = user
		g.last[user] = rotation{replica: replica, at: time.Now(), dropped: after}
		g.mu.Unlock()
	}
	if after {
		g.dropped.Add(1)
		panic(http.ErrAbortHandler)
	}
	for name, values := range response.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(response.Code)
	_, _ = w.Write(response.Body.Bytes())
}

func startChaos(t *testing.T, users int) *chaos {
	t.Helper()
	c := &chaos{stack: newStack(t, 150*time.Second), faults: map[string]int{}, exposure: map[float64]float64{}}
	c.random = rand.New(rand.NewPCG(*chaosSeed, 0))
	c.zoomGate = &gate{
		zoom: c.zoom, last: map[string]rotation{}, owners: map[string]string{}, random: rand.New(rand.NewPCG(*chaosSeed, 1)),
	}
	server := httptest.NewServer(c.zoomGate)
	t.Cleanup(server.Close)
	c.gateURL = server.URL

	// Each replica has its own address, journal and path to Zoom. Recall calls a replica
	// through a load balancer.
	for i := range replicas {
		c.public[i], c.ops[i] = freeAddr(t), freeAddr(t)
		c.launch(i, t.TempDir())
	}
	balancer := httptest.NewServer(http.HandlerFunc(c.balance))
	t.Cleanup(balancer.Close)
	_, registrar, _ := c.registrar(balancer.URL)
	for i := range users {
		user := fmt.Sprint("user-", i)
		_, refresh := c.zoom.Grant(zoomtest.DefaultClientID, "zoom-"+user)
		if _, err := registrar.RegisterUser(t.Context(), &registrarv1.RegisterUserRequest{
			UserId: user, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: refresh},
		}); err != nil {
			t.Fatal(err)
		}
		c.users = append(c.users, user)
	}
	c.recordOwners(users)
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	for range 4 {
		c.callers.Go(func() { c.call(ctx) })
	}
	return c
}

// recordOwners records the owners of the users' first refresh tokens in the gate. It
// records later ones itself, from Zoom's responses.
func (c *chaos) recordOwners(users int) {
	for i := range users {
		user := fmt.Sprint("zoom-user-", i)
		for _, token := range c.zoom.RefreshTokensOf(user) {
			c.zoomGate.owners[token] = user
		}
	}
}

func (c *chaos) launch(i int, dir string) {
	env := slices.Clone(c.env)
	env = append(env, "HTTP_ADDR="+c.public[i], "OPS_ADDR="+c.ops[i], "JOURNAL_DIR="+dir, "REDIS_START_TIMEOUT=2m",
		"REFRESH_BEFORE=130s", "ZOOM_OAUTH_URL="+c.gateURL+"/"+strconv.Itoa(i), "RECALL_VERIFICATION_SECRETS="+verification)
	p := launchQuiet(c.t, "tokenserver", env)
	p.dir, p.ops = dir, c.ops[i]
	c.mu.Lock()
	c.replicas[i] = p
	c.mu.Unlock()
}

// launchQuiet starts a program and discards its output.
func launchQuiet(t *testing.T, name string, env []string) *process {
	t.Helper()
	p := &process{t: t, name: name, ended: make(chan struct{}), seen: make(chan struct{})}
	p.command = exec.Command(bin + "/" + name)
	p.command.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill()
		<-p.ended
	})
	return p
}

// freeAddr returns an address with a port that is free now.
func freeAddr(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// balance forwards a callback to the replicas in random order until one responds.
func (c *chaos) balance(w http.ResponseWriter, r *http.Request) {
	client := &http.Client{Timeout: 5 * time.Second}
	for _, n := range rand.Perm(replicas) {
		request, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+c.public[n]+r.URL.Path, nil)
		if err != nil {
			return
		}
		request.Header = r.Header
		response, err := client.Do(request)
		if err != nil {
			continue
		}
		defer func() { _ = response.Body.Close() }()
		for name, values := range response.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(response.StatusCode)
		_, _ = io.Copy(w, response.Body)
		return
	}
	w.WriteHeader(http.StatusBadGateway)
}

// call requests tokens as Recall does, until ctx ends.
func (c *chaos) call(ctx context.Context) {
	for ctx.Err() == nil {
		credentials := c.recall.Credentials()
		credential := credentials[rand.IntN(len(credentials))]
		if _, _, err := c.recall.Callback(ctx, credential.ID); err == nil {
			c.served.Add(1)
		} else if ctx.Err() == nil {
			c.refused.Add(1)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *chaos) fault(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[name]++
}

// injectFaults causes faults until the number of processes have been killed.
func (c *chaos) injectFaults(kills int) {
	c.setLoss(0.01)
	saved, savedAt := c.redis.Save(), time.Now()
	var stopped sync.WaitGroup
	for n := range kills {
		time.Sleep(time.Duration(300+c.random.IntN(900)) * time.Millisecond)
		c.kill(c.random.IntN(replicas))
		// The rarer faults are spread over the run; each occurs at least once.
		switch {
		case n%80 == 3:
			c.fault("Redis killed")
			c.redis.Kill()
			c.redis.Run()
		case n%80 == 43 || n == 9:
			c.fault("Redis restored to a state up to 5 s old")
			c.redis.Kill()
			c.redis.Restore(saved)
			c.redis.Run()
		case n%80 == 7:
			c.fault("token server stopped for 35 s")
			i := c.random.IntN(replicas)
			stopped.Go(func() { c.freeze(i, 35*time.Second) })
		case n%40 == 5:
			c.fault("Zoom returns 500 for 2 s")
			c.zoom.Fail("/oauth/token", -1, zoomtest.Fault{Status: 500})
			time.Sleep(2 * time.Second)
			c.zoom.Heal()
		case n%40 == 11:
			c.fault("Zoom returns 429 for 2 s")
			c.zoom.Fail("/oauth/token", -1, zoomtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"1"}}})
			time.Sleep(2 * time.Second)
			c.zoom.Heal()
		}
		if time.Since(savedAt) > 3*time.Second {
			saved, savedAt = c.redis.Save(), time.Now()
		}
	}
	stopped.Wait()
	c.setLoss(0)
}

func (c *chaos) setLoss(share float64) {
	c.zoomGate.mu.Lock()
	defer c.zoomGate.mu.Unlock()
	c.zoomGate.loss = share
}

// kill ends a replica as a crash does, and starts it again.
func (c *chaos) kill(i int) {
	c.mu.Lock()
	p := c.replicas[i]
	c.mu.Unlock()
	c.scrape(p)
	_ = p.command.Process.Kill()
	<-p.ended
	c.fault("token server killed")
	c.mu.Lock()
	c.ends[i] = append(c.ends[i], time.Now())
	c.mu.Unlock()
	c.launch(i, p.dir)
}

func (c *chaos) freeze(i int, d time.Duration) {
	c.mu.Lock()
	p := c.replicas[i]
	c.mu.Unlock()
	_ = p.command.Process.Signal(syscall.SIGSTOP)
	select {
	case <-time.After(d):
	case <-p.ended: // killed meanwhile
	}
	_ = p.command.Process.Signal(syscall.SIGCONT)
}

// awaitRecovery waits until each grant is renewed once more, so its stored refresh token
// is valid, or requires a new consent. After 2 minutes it returns in any case.
func (c *chaos) awaitRecovery() {
	c.stop()
	c.callers.Wait()
	before := map[string]int{}
	for _, credential := range c.recall.Credentials() {
		before[credential.UserID] = c.zoom.RefreshesOf(credential.UserID)
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		waiting := 0
		for _, credential := range c.recall.Credentials() {
			if c.zoom.RefreshesOf(credential.UserID) > before[credential.UserID] {
				continue
			}
			if _, status, _ := c.recall.Callback(context.Background(), credential.ID); status != http.StatusGone {
				waiting++
			}
		}
		if waiting == 0 {
			time.Sleep(time.Second) // until the last commits are done
			return
		}
	}
}

// lostUsers returns the users whose callback URL does not return a valid token.
func (c *chaos) lostUsers() (users []string) {
	for _, credential := range c.recall.Credentials() {
		token, _, err := c.recall.Callback(context.Background(), credential.ID)
		if err != nil || !c.zoom.IsLive(token) {
			users = append(users, credential.UserID)
		}
	}
	return users
}

// report logs the results, and fails the test if the loss of a grant is unexplained.
func (c *chaos) report() {
	lostResponses, lostProcesses := 0, 0
	for _, user := range c.lostUsers() {
		last := c.zoomGate.last[user]
		killed := slices.ContainsFunc(c.ends[last.replica], func(at time.Time) bool {
			since := at.Sub(last.at)
			return since > -100*time.Millisecond && since < 250*time.Millisecond
		})
		switch {
		case last.dropped:
			lostResponses++
		case killed:
			lostProcesses++
		default:
			c.t.Errorf("%s is lost; no injected fault explains it", user)
		}
	}
	for _, p := range c.replicas {
		c.scrape(p)
	}
	counts := c.zoom.Counts()
	out := &strings.Builder{}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { _, _ = fmt.Fprintf(table, "%s\t%v\n", name, value) }
	for _, name := range []string{"token server killed", "token server stopped for 35 s", "Redis killed", "Redis restored to a state up to 5 s old", "Zoom returns 500 for 2 s", "Zoom returns 429 for 2 s"} {
		row(name, c.faults[name])
	}
	row("connections to Zoom dropped, before or after a rotation", c.zoomGate.dropped.Load())
	row("grants", len(c.users))
	row("rotations", counts.Refreshes-len(c.users))
	row("callbacks served", c.served.Load())
	row("callbacks refused (503, 410)", c.refused.Load())
	row("spent tokens presented again", counts.SpentPresented)
	row("grants lost: Zoom's response was dropped", lostResponses)
	row("grants lost: killed between Zoom's response and the journal's sync", lostProcesses)
	row("time from Zoom's response to the sync, median, at most", c.median())
	_ = table.Flush()
	c.t.Log("\n" + out.String())
	if counts.Refreshes-len(c.users) < *kills || c.served.Load() == 0 {
		c.t.Error("too few rotations or callbacks: the run proves nothing")
	}
}

// scrape adds a replica's histogram of the time from Zoom's response to the sync.
func (c *chaos) scrape(p *process) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.ops+"/metrics", nil)
	if err != nil {
		return
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return
	}
	defer func() { _ = response.Body.Close() }()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), `tokenprovider_response_exposure_seconds_bucket{le="`)
		if !ok {
			continue
		}
		bound, count, _ := strings.Cut(rest, `"} `)
		le, errLe := strconv.ParseFloat(bound, 64)
		n, errN := strconv.ParseFloat(count, 64)
		if errLe == nil && errN == nil {
			c.exposure[le] += n
		}
	}
}

// median returns the upper bound of the bucket that holds the median.
func (c *chaos) median() time.Duration {
	var bounds []float64
	var all float64
	for le, n := range c.exposure {
		bounds = append(bounds, le)
		all = max(all, n)
	}
	slices.Sort(bounds)
	for _, le := range bounds {
		if c.exposure[le] >= all/2 {
			return time.Duration(le * float64(time.Second))
		}
	}
	return 0
}
