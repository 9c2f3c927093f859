// Package bulkimport registers many users from a file, each with a refresh token that
// somebody else has kept until now.
//
// It calls the registrar, so that all is done as for one user: a token is spent
// once, its answer is in a journal before anything else is done, and a repeated
// call is answered with what came of the first. So an import may be broken off and
// run again; what is done is remembered, and what is not certain is asked for again.
package bulkimport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenprovider/internal/grant"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

// Registrar registers a user.
type Registrar interface {
	RegisterUser(ctx context.Context, r *registrarv1.RegisterUserRequest, o ...grpc.CallOption) (*registrarv1.RegisterUserResponse, error)
}

// Refusal is a line that did not come to a user.
type Rejection struct {
	Line   int
	User   string
	Reason string // for people; never the token
}

// Report is how far an import has come.
type Report struct {
	Lines       int // in the file
	AlreadyDone int // of these, done by a run before
	Active      int // users that Recall knows now
	Pending     int // users whose grant is safe, and that Recall will know soon
	Rejections  []Rejection
}

// ErrFile means that the file as a whole cannot be read: nothing was done, and
// another run would come to the same.
var ErrInvalidFile = errors.New("the file cannot be imported")

// Seen is how many lines have been dealt with.
func (r *Report) Processed() int { return r.AlreadyDone + r.Active + r.Pending + len(r.Rejections) }

// Import is one run. Every field is required.
type Import struct {
	Registrar   Registrar
	State       *State
	Format      Format
	PerMinute   int           // registrations
	Concurrency int           // calls at once
	CallTimeout time.Duration // for one call
	LineTimeout time.Duration // for one line, until the run gives up

	mu     sync.Mutex
	report Report
}

// Run imports a file, and calls tell now and then, from any goroutine. Its report is
// complete unless there is an error: that of a run that was broken off, because
// ctx has ended, or because the registrar did not answer or would not let the
// caller. Then what is not in the report is as it was, or will be found done.
func (i *Import) Run(ctx context.Context, file io.ReadSeeker, tell func(Report)) (Report, error) {
	twice, err := i.survey(file)
	if err != nil {
		return i.snapshot(), fmt.Errorf("%w: %w", ErrInvalidFile, err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return i.snapshot(), err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pace := rate.NewLimiter(rate.Every(time.Minute/time.Duration(i.PerMinute)), max(1, i.PerMinute/60))
	lines := make(chan Line)
	var workers sync.WaitGroup
	for range i.Concurrency {
		workers.Go(func() {
			for line := range lines {
				if err := i.line(ctx, pace, line); err != nil {
					stop(err)
				}
				tell(i.snapshot())
			}
		})
	}
	err = read(file, i.Format, func(line Line, fault error) error {
		switch {
		case fault != nil:
			i.refuse(line, fault.Error())
			return nil
		case twice[line.Number] != 0:
			i.refuse(line, fmt.Sprintf("the same user as in line %d: leave one of the two", twice[line.Number]))
			return nil
		case i.State.has(line):
			i.mu.Lock()
			defer i.mu.Unlock()
			i.report.AlreadyDone++
			return nil
		}
		select {
		case lines <- line:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(lines)
	workers.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	report := i.snapshot()
	slices.SortFunc(report.Rejections, func(a, b Rejection) int { return a.Line - b.Line })
	return report, err
}

// survey counts the lines, and finds those whose user is in a line before.
func (i *Import) survey(file io.Reader) (twice map[int]int, err error) {
	first, twice := map[grant.ID]int{}, map[int]int{}
	err = read(file, i.Format, func(line Line, fault error) error {
		i.report.Lines++
		if fault != nil {
			return nil
		}
		id := grant.NewID(line.App, line.User)
		if before, known := first[id]; known {
			twice[line.Number] = before
		} else {
			first[id] = line.Number
		}
		return nil
	})
	return twice, err
}

func (i *Import) snapshot() Report {
	i.mu.Lock()
	defer i.mu.Unlock()
	report := i.report
	report.Rejections = slices.Clone(report.Rejections)
	return report
}

func (i *Import) refuse(l Line, reason string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.report.Rejections = append(i.report.Rejections, Rejection{l.Number, l.User, reason})
}

// line registers a user. An error ends the run.
func (i *Import) line(ctx context.Context, pace *rate.Limiter, l Line) error {
	if err := pace.Wait(ctx); err != nil {
		return context.Cause(ctx)
	}
	request := &registrarv1.RegisterUserRequest{
		UserId: l.User, ZoomApp: l.App, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: l.Refresh.Reveal()},
	}
	for end := time.Now().Add(i.LineTimeout); ; {
		try, cancel := context.WithTimeout(ctx, i.CallTimeout)
		answer, err := i.Registrar.RegisterUser(try, request)
		cancel()
		st := status.Convert(err)
		switch st.Code() {
		case codes.OK:
			if err := i.State.add(l); err != nil {
				return fmt.Errorf("noting that line %d is done: %w", l.Number, err)
			}
			i.mu.Lock()
			defer i.mu.Unlock()
			if answer.GetUser().GetState() == registrarv1.State_STATE_PENDING {
				i.report.Pending++
			} else {
				i.report.Active++
			}
			return nil
		case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.NotFound, codes.Internal:
			i.refuse(l, st.Message())
			return nil
		case codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
			return fmt.Errorf("the registrar does not let this client: %s", st.Message())
		}
		wait := retryDelay(st)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().Add(wait).After(end) {
			return fmt.Errorf("line %d: the registrar did not register it within %v: %s", l.Number, i.LineTimeout, st.Message())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// retryDelay is how long the registrar wants the caller to wait.
func retryDelay(st *status.Status) time.Duration {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return time.Second
}
