// Package bulkimport registers many users from a file, each with the refresh token that
// another system has used until now.
//
// Each line is a call of the registrar's RegisterUser, which is idempotent: a token is
// spent once, and a repeated call returns the result of the first. So an import may be
// interrupted and repeated. [State] records the completed lines; a line whose response
// was lost is sent again.
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

// Registrar registers a user. A call may be repeated with the same request.
type Registrar interface {
	RegisterUser(ctx context.Context, r *registrarv1.RegisterUserRequest, o ...grpc.CallOption) (*registrarv1.RegisterUserResponse, error)
}

// Rejection is a line whose user was not registered.
type Rejection struct {
	Line   int
	User   string
	Reason string // human-readable, without the token
}

// Report is the progress of an import.
type Report struct {
	Lines       int // in the file
	AlreadyDone int // completed by an earlier run
	Active      int // users registered at Recall
	Pending     int // users whose grant is stored; the registrar retries at Recall
	Rejections  []Rejection
}

// ErrInvalidFile means that the file as a whole is invalid, and no line was sent.
var ErrInvalidFile = errors.New("the file cannot be imported")

// Processed returns the number of processed lines.
func (r *Report) Processed() int { return r.AlreadyDone + r.Active + r.Pending + len(r.Rejections) }

// Import is one run. Every field is required.
type Import struct {
	Registrar   Registrar
	State       *State
	Format      Format
	PerMinute   int           // maximum registrations per minute
	Concurrency int           // maximum concurrent calls
	CallTimeout time.Duration // of one call
	LineTimeout time.Duration // of one line with its retries; then the run ends

	mu     sync.Mutex
	report Report
}

// Run imports a file, and calls progress after each line that it sent, from several
// goroutines. It returns an error if the run ended early: ctx has ended, the registrar
// is unavailable, or it denied access. Lines that the report then lacks were not sent,
// or lack a response; the next run sends them.
func (i *Import) Run(ctx context.Context, file io.ReadSeeker, progress func(Report)) (Report, error) {
	duplicates, err := i.scan(file)
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
				if err := i.register(ctx, pace, line); err != nil {
					stop(err)
				}
				progress(i.snapshot())
			}
		})
	}
	err = read(file, i.Format, func(line Line, problem error) error {
		switch {
		case problem != nil:
			i.reject(line, problem.Error())
			return nil
		case duplicates[line.Number] != 0:
			i.reject(line, fmt.Sprintf("the same user as in line %d", duplicates[line.Number]))
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

// scan counts the lines. It returns, for each line whose user is also in an earlier
// line, the number of that line.
func (i *Import) scan(file io.Reader) (duplicates map[int]int, err error) {
	first, duplicates := map[grant.ID]int{}, map[int]int{}
	err = read(file, i.Format, func(line Line, problem error) error {
		i.report.Lines++
		if problem != nil {
			return nil
		}
		id := grant.NewID(line.App, line.User)
		if earlier, exists := first[id]; exists {
			duplicates[line.Number] = earlier
		} else {
			first[id] = line.Number
		}
		return nil
	})
	return duplicates, err
}

func (i *Import) snapshot() Report {
	i.mu.Lock()
	defer i.mu.Unlock()
	report := i.report
	report.Rejections = slices.Clone(report.Rejections)
	return report
}

func (i *Import) reject(l Line, reason string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.report.Rejections = append(i.report.Rejections, Rejection{l.Number, l.User, reason})
}

// register registers the user of a line, with retries. An error ends the run.
func (i *Import) register(ctx context.Context, pace *rate.Limiter, l Line) error {
	if err := pace.Wait(ctx); err != nil {
		return context.Cause(ctx)
	}
	request := &registrarv1.RegisterUserRequest{
		UserId: l.User, ZoomApp: l.App, Grant: &registrarv1.RegisterUserRequest_RefreshToken{RefreshToken: l.Refresh.Reveal()},
	}
	for end := time.Now().Add(i.LineTimeout); ; {
		callCtx, cancel := context.WithTimeout(ctx, i.CallTimeout)
		response, err := i.Registrar.RegisterUser(callCtx, request)
		cancel()
		st := status.Convert(err)
		switch st.Code() {
		case codes.OK:
			if err := i.State.add(l); err != nil {
				return fmt.Errorf("recording line %d as completed: %w", l.Number, err)
			}
			i.mu.Lock()
			defer i.mu.Unlock()
			if response.GetUser().GetState() == registrarv1.State_STATE_PENDING {
				i.report.Pending++
			} else {
				i.report.Active++
			}
			return nil
		case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.NotFound, codes.Internal:
			i.reject(l, st.Message())
			return nil
		case codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
			return fmt.Errorf("the registrar denied access: %s", st.Message())
		}
		wait := retryDelay(st)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().Add(wait).After(end) {
			return fmt.Errorf("line %d: not registered within %v: %s", l.Number, i.LineTimeout, st.Message())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// retryDelay returns the delay in the registrar's RetryInfo, or a second.
func retryDelay(st *status.Status) time.Duration {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return time.Second
}
