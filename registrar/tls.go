package registrar

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"

	"tokenprovider/internal/reload"
)

// Certificates is what the server shows, and what it knows clients by.
type Certificates struct {
	own     tls.Certificate
	clients *x509.CertPool

	clientsEnd time.Time // when the last of the clients' authorities ends
}

// ReadCertificates reads the server's certificate chain and key, and the
// certificates of the authorities that vouch for clients, in PEM.
func ReadCertificates(certFile, keyFile, clientCAFile string, read reload.Read) (*Certificates, error) {
	cert, errCert := read(certFile)
	key, errKey := read(keyFile)
	authorities, errCA := read(clientCAFile)
	if err := errors.Join(errCert, errKey, errCA); err != nil {
		return nil, err
	}
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the certificate and its key: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(authorities) {
		return nil, errors.New("the clients' authorities: no certificate in PEM")
	}
	return &Certificates{own, clients, lastEnd(authorities)}, nil
}

// MutualTLS are credentials that take only clients whose certificate one of the
// authorities vouches for. Each handshake uses the certificates as they are then.
func MutualTLS(certificates *reload.Value[*Certificates]) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := certificates.Get()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				ClientAuth:   tls.RequireAndVerifyClientCert,
				Certificates: []tls.Certificate{now.own},
				ClientCAs:    now.clients,
				NextProtos:   []string{"h2"},
				// A ticket would let a client in whose authority is not trusted any more.
				SessionTicketsDisabled: true,
			}, nil
		},
	})
}
