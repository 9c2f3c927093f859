package config

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/redis/go-redis/v9/logging"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"tokenprovider/internal/store"
)

// Records is what reads grants as they are in Redis.
type Records struct {
	Redis
	Encryption
}

// Check implements [Checker].
func (r *Records) Check(fault func(setting, text string)) {
	r.Redis.Check(fault)
	r.Encryption.Check(fault)
}

// Connection returns the client for Redis, nil if the settings name none.
func (r *Redis) Connection() *store.Connection { return r.client }

// Open returns the store, if Redis answers and the keyset opens what is in it.
// It writes nothing.
func (r *Records) Open(ctx context.Context) (*store.Store, error) {
	logging.Disable() // what matters of it comes back as errors
	opened := store.New(r.client, r.Keyset())
	if _, err := opened.CheckDecrypts(ctx); err != nil {
		if errors.Is(err, store.ErrKeyset) {
			err = Faults{"KEYSET_FILE: " + err.Error()}
		}
		return nil, errors.Join(err, r.client.Close())
	}
	return opened, nil
}

// Close closes the connections to Redis.
func (r *Records) Close() error {
	if r.client == nil {
		return nil
	}
	return r.client.Close()
}

// Registrar is how a client reaches the registrar.
type Registrar struct {
	RegistrarAddr       string `name:"registrar-addr" env:"REGISTRAR_ADDR" placeholder:"HOST:PORT" needed:"where the registrar serves gRPC, such as registrar.internal:8443" help:"Where the registrar serves gRPC."`
	RegistrarCAFile     string `name:"registrar-ca-file" env:"REGISTRAR_CA_FILE" placeholder:"FILE" help:"The authorities that vouch for the registrar, in PEM. Empty: those that the machine trusts."`
	RegistrarCertFile   string `name:"registrar-cert-file" env:"REGISTRAR_CERT_FILE" placeholder:"FILE" help:"The client's own certificate, in PEM: the registrar's policy says what it may do."`
	RegistrarKeyFile    string `name:"registrar-key-file" env:"REGISTRAR_KEY_FILE" placeholder:"FILE" help:"The certificate's key, in PEM."`
	RegistrarServerName string `name:"registrar-server-name" env:"REGISTRAR_SERVER_NAME" placeholder:"NAME" help:"Name in the registrar's certificate, where the address is another one, as through a port-forward."`
	RegistrarInsecure   bool   `name:"registrar-insecure" env:"REGISTRAR_INSECURE" help:"Call a registrar that serves plaintext (GRPC_INSECURE)."`

	transport credentials.TransportCredentials
}

// Check implements [Checker].
func (r *Registrar) Check(fault func(setting, text string)) {
	if r.RegistrarAddr == "" {
		return
	}
	if r.RegistrarInsecure {
		r.transport = insecure.NewCredentials()
		for setting, path := range map[string]string{
			"REGISTRAR_CA_FILE": r.RegistrarCAFile, "REGISTRAR_CERT_FILE": r.RegistrarCertFile, "REGISTRAR_KEY_FILE": r.RegistrarKeyFile,
		} {
			if path != "" {
				fault(setting, "set besides REGISTRAR_INSECURE: choose one")
			}
		}
		return
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: r.RegistrarServerName}
	if r.RegistrarCAFile != "" {
		authorities, err := os.ReadFile(r.RegistrarCAFile)
		config.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			fault("REGISTRAR_CA_FILE", fileFault(err))
		case !config.RootCAs.AppendCertsFromPEM(authorities):
			fault("REGISTRAR_CA_FILE", "no certificate in PEM")
		}
	}
	switch {
	case r.RegistrarCertFile == "":
		fault("REGISTRAR_CERT_FILE", "not set: the client's own certificate in PEM; or set REGISTRAR_INSECURE=true if the registrar serves plaintext")
	case r.RegistrarKeyFile == "":
		fault("REGISTRAR_KEY_FILE", "not set: the key of REGISTRAR_CERT_FILE in PEM")
	default:
		own, err := tls.LoadX509KeyPair(r.RegistrarCertFile, r.RegistrarKeyFile)
		var file *os.PathError
		switch {
		case errors.As(err, &file) && file.Path == r.RegistrarKeyFile:
			fault("REGISTRAR_KEY_FILE", fileFault(err))
		case errors.As(err, &file):
			fault("REGISTRAR_CERT_FILE", fileFault(err))
		case err != nil:
			fault("REGISTRAR_CERT_FILE", "with REGISTRAR_KEY_FILE: "+err.Error())
		}
		config.Certificates = []tls.Certificate{own}
	}
	r.transport = credentials.NewTLS(config)
}

// Connect returns a connection to the registrar; it does not dial.
func (r *Registrar) Connect() (*grpc.ClientConn, error) {
	if r.transport == nil {
		return nil, errors.New("REGISTRAR_ADDR is not set, or its certificates are of no use")
	}
	connection, err := grpc.NewClient(r.RegistrarAddr, grpc.WithTransportCredentials(r.transport))
	if err != nil {
		return nil, fmt.Errorf("REGISTRAR_ADDR: %w", err)
	}
	return connection, nil
}
