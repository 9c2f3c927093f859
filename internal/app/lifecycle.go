// Package app has what the programs share: it opens stores and clients from the
// settings, runs the parts of a program, and serves health and metrics.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"tokenprovider/internal/config"
)

// Main runs a program until SIGINT or SIGTERM and returns its exit status: 0 for
// success, 2 for invalid settings, 1 for any other error. It prints each line of an
// error with the program's name.
func Main(program string, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return ReportExit(program, run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr)
}

// ReportExit prints the error of a program and returns its exit status.
func ReportExit(program string, err error, stderr io.Writer) int {
	if err == nil || errors.Is(err, config.ErrDone) {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		_, _ = fmt.Fprintf(stderr, "%s: %s\n", program, strings.TrimSpace(line))
	}
	var faults config.Faults
	if errors.As(err, &faults) {
		return 2
	}
	return 1
}

// Part is a part of a program. Run works until Stop is called, and then returns nil.
// Stop returns when the part has finished its work, or when ctx ends. Either may be
// nil.
type Part struct {
	Name string
	Run  func() error
	Stop func(ctx context.Context) error
}

// Run runs the parts until ctx ends or one of them fails. Then it stops them one by
// one, the last first, all within grace.
func Run(ctx context.Context, log *zap.Logger, grace time.Duration, parts ...Part) error {
	failed := make(chan error, len(parts))
	for _, part := range parts {
		if part.Run == nil {
			continue
		}
		go func() {
			if err := part.Run(); err != nil {
				failed <- fmt.Errorf("%s: %w", part.Name, err)
			}
		}()
	}
	var fault error
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case fault = <-failed:
		log.Error("part failed; stopping", zap.Error(fault))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i].Stop == nil {
			continue
		}
		if err := parts[i].Stop(ctx); err != nil {
			fault = errors.Join(fault, fmt.Errorf("stopping %s: %w", parts[i].Name, err))
		}
	}
	log.Info("stopped")
	return fault
}

// Listen opens a listener. Errors name the setting of its address.
func Listen(ctx context.Context, setting, addr string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return listener, nil
}

// HTTP returns a part that serves a handler over HTTP/1.1 and h2c, with limits on
// time and size against slow or abusive clients.
func HTTP(name string, log *zap.Logger, listener net.Listener, handler http.Handler) Part {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols:         protocols,
		ErrorLog:          zap.NewStdLog(log.Named(name)),
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	return Part{
		Name: name,
		Run: func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		Stop: server.Shutdown,
	}
}

// GRPC returns a part that serves gRPC. It cancels calls that outlast the grace.
func GRPC(name string, listener net.Listener, server *grpc.Server) Part {
	return Part{
		Name: name,
		Run:  func() error { return server.Serve(listener) },
		Stop: func(ctx context.Context) error {
			stopped := make(chan struct{})
			go func() {
				server.GracefulStop()
				close(stopped)
			}()
			select {
			case <-stopped:
				return nil
			case <-ctx.Done():
				server.Stop()
				return ctx.Err()
			}
		},
	}
}

// Loop returns a part that works until its context ends.
func Loop(name string, work func(ctx context.Context)) Part {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	return Part{
		Name: name,
		Run: func() error {
			defer close(ended)
			work(ctx)
			return nil
		},
		Stop: func(stop context.Context) error {
			cancel()
			select {
			case <-ended:
				return nil
			case <-stop.Done():
				return stop.Err()
			}
		},
	}
}
