// Command register shows how an internal service registers a user: over mutual TLS,
// with a deadline for each attempt, repeating the same request until there is a
// response. That is safe: a code is spent once, and a repeated call returns
// the result of the first.
//
//	register --addr registrar.internal:8443 --ca ca.pem --cert own.pem --key own-key.pem \
//	  --user ann --redirect-uri https://app.example.com/oauth/zoom < code
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "register:", err)
		os.Exit(1) //nolint:gocritic // stop only ends signal handling
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("register", flag.ContinueOnError)
	addr := flags.String("addr", "localhost:8443", "Address of the registrar.")
	ca := flags.String("ca", "", "File with the CA of the registrar's certificate. Empty: plaintext.")
	cert, key := flags.String("cert", "", "File with this client's certificate."), flags.String("key", "", "File with its key.")
	user, app := flags.String("user", "", "The caller's own id of the user."), flags.String("zoom-app", "", "Name of the Zoom app. Empty: the only one.")
	redirect := flags.String("redirect-uri", "", "redirect_uri of the consent request, byte for byte.")
	if err := flags.Parse(args); err != nil {
		return err
	}
	// A code is a secret until it expires, so it is not an argument.
	code, err := io.ReadAll(io.LimitReader(stdin, 4096))
	if err != nil {
		return fmt.Errorf("reading the code: %w", err)
	}
	transport, err := transport(*ca, *cert, *key)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(*addr, grpc.WithTransportCredentials(transport))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	registered, err := register(ctx, registrarv1.NewRegistrarServiceClient(connection), &registrarv1.RegisterUserRequest{
		UserId: *user, ZoomApp: *app,
		Grant: &registrarv1.RegisterUserRequest_AuthorizationCode{AuthorizationCode: &registrarv1.AuthorizationCode{
			Code: strings.TrimSpace(string(code)), RedirectUri: *redirect,
		}},
	})
	if err != nil {
		return err
	}
	// STATE_PENDING is a success too: the registrar completes the registration later.
	_, err = fmt.Fprintf(stdout, "%s is %s %s\n", registered.GetUserId(), registered.GetState(), registered.GetReason())
	return err
}

// transport returns credentials for mutual TLS, or for plaintext without a CA.
func transport(ca, cert, key string) (credentials.TransportCredentials, error) {
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	authority, err := os.ReadFile(ca) //nolint:gosec // the caller names the file
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("reading %s: no certificate in PEM", ca)
	}
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{own}}), nil
}

const (
	attemptTimeout = 20 * time.Second // includes calls to Zoom and Recall
	totalTimeout   = 4 * time.Minute  // a code expires after 5 minutes
)

// register repeats the call until it succeeds, fails for good, or the code expires.
func register(ctx context.Context, c registrarv1.RegistrarServiceClient, r *registrarv1.RegisterUserRequest) (*registrarv1.User, error) {
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	for {
		try, cancel := context.WithTimeout(ctx, attemptTimeout)
		response, err := c.RegisterUser(try, r)
		cancel()
		wait := time.Second
		switch status.Code(err) {
		case codes.OK:
			return response.GetUser(), nil
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted:
			wait = retryDelay(err, wait)
		case codes.InvalidArgument:
			return nil, fmt.Errorf("the user must consent again: %w", err)
		case codes.AlreadyExists:
			return nil, fmt.Errorf("the Zoom user has a credential at Recall that is not this user's: %w", err)
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// retryDelay returns the delay in the registrar's RetryInfo, or otherwise.
func retryDelay(err error, otherwise time.Duration) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return otherwise
}
