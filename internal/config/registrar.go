package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Registrar has the settings of a client of the registrar.
type Registrar struct {
	RegistrarAddr       string `name:"registrar-addr" env:"REGISTRAR_ADDR" placeholder:"HOST:PORT" needed:"the registrar's gRPC address, such as registrar.internal:8443" help:"gRPC address of the registrar."`
	RegistrarCAFile     string `name:"registrar-ca-file" env:"REGISTRAR_CA_FILE" placeholder:"FILE" help:"Certificate authorities of the registrar, in PEM. Empty: the system's."`
	RegistrarCertFile   string `name:"registrar-cert-file" env:"REGISTRAR_CERT_FILE" placeholder:"FILE" help:"Client certificate, in PEM. The registrar's policy grants its rights."`
	RegistrarKeyFile    string `name:"registrar-key-file" env:"REGISTRAR_KEY_FILE" placeholder:"FILE" help:"Private key of the client certificate, in PEM."`
	RegistrarServerName string `name:"registrar-server-name" env:"REGISTRAR_SERVER_NAME" placeholder:"NAME" help:"Name in the registrar's certificate. Empty: the host of the address."`
	RegistrarInsecure   bool   `name:"registrar-insecure" env:"REGISTRAR_INSECURE" help:"Plaintext, for a registrar with GRPC_INSECURE."`

	transport credentials.TransportCredentials
}

// Check implements [Checker].
func (r *Registrar) Check(fault func(setting, text string)) {
	switch {
	case r.RegistrarAddr == "":
	case r.RegistrarInsecure:
		r.transport = insecure.NewCredentials()
		for setting, path := range map[string]string{
			"REGISTRAR_CA_FILE": r.RegistrarCAFile, "REGISTRAR_CERT_FILE": r.RegistrarCertFile, "REGISTRAR_KEY_FILE": r.RegistrarKeyFile,
		} {
			if path != "" {
				fault(setting, "is mutually exclusive with REGISTRAR_INSECURE")
			}
		}
	default:
		r.transport = credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: r.RegistrarServerName,
			RootCAs: r.authorities(fault), Certificates: r.certificates(fault),
		})
	}
}

// authorities returns the registrar's certificate authorities. nil: the system's.
func (r *Registrar) authorities(fault func(setting, text string)) *x509.CertPool {
	if r.RegistrarCAFile == "" {
		return nil
	}
	pem, err := os.ReadFile(r.RegistrarCAFile)
	pool := x509.NewCertPool()
	switch {
	case err != nil:
		fault("REGISTRAR_CA_FILE", fileFault(err))
	case !pool.AppendCertsFromPEM(pem):
		fault("REGISTRAR_CA_FILE", "must contain a certificate in PEM")
	}
	return pool
}

// certificates returns the client's certificate.
func (r *Registrar) certificates(fault func(setting, text string)) []tls.Certificate {
	switch {
	case r.RegistrarCertFile == "":
		fault("REGISTRAR_CERT_FILE", "is required: the client's certificate in PEM; or set REGISTRAR_INSECURE=true if the registrar serves plaintext")
		return nil
	case r.RegistrarKeyFile == "":
		fault("REGISTRAR_KEY_FILE", "is required: the key of REGISTRAR_CERT_FILE in PEM")
		return nil
	}
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
	return []tls.Certificate{own}
}

// Connect returns a connection to the registrar. It does not dial.
func (r *Registrar) Connect() (*grpc.ClientConn, error) {
	if r.transport == nil {
		return nil, errors.New("REGISTRAR_ADDR is not set, or its certificates are invalid")
	}
	connection, err := grpc.NewClient(r.RegistrarAddr, grpc.WithTransportCredentials(r.transport))
	if err != nil {
		return nil, fmt.Errorf("REGISTRAR_ADDR: %w", err)
	}
	return connection, nil
}
