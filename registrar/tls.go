package registrar

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"tokenprovider/internal/reload"
)

// Certificates are the server's certificate, and the CAs of its clients.
type Certificates struct {
	own     tls.Certificate
	clients *x509.CertPool

	clientsExpiry time.Time // the latest expiry of the client CAs
}

// ReadCertificates reads the server's certificate chain and key, and the CAs of its
// clients, in PEM.
func ReadCertificates(certFile, keyFile, clientCAFile string, read reload.Read) (*Certificates, error) {
	cert, errCert := read(certFile)
	key, errKey := read(keyFile)
	authorities, errCA := read(clientCAFile)
	if err := errors.Join(errCert, errKey, errCA); err != nil {
		return nil, err
	}
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate and its key: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(authorities) {
		return nil, errors.New("reading the client CAs: no certificate in PEM")
	}
	return &Certificates{own, clients, latestExpiry(authorities)}, nil
}

// MutualTLS returns credentials that accept only clients with a certificate of one of
// the CAs. Each handshake uses the current certificates.
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
				// A ticket would admit a client whose CA is no longer trusted.
				SessionTicketsDisabled: true,
			}, nil
		},
	})
}

var expiryDesc = prometheus.NewDesc("tokenprovider_certificate_expiry_timestamp_seconds",
	"Expiry of the gRPC server's certificate, and of the longest-lived client CA.", []string{"certificate"}, nil)

// certificateMetrics exports the expiry of the current certificates.
type certificateMetrics struct {
	*reload.Value[*Certificates]
}

// MeasureCertificates exports the expiry of the server's certificates. Nil: no export.
func MeasureCertificates(certificates *reload.Value[*Certificates], registerer prometheus.Registerer) {
	if certificates != nil {
		registerer.MustRegister(certificateMetrics{certificates})
	}
}

// Describe implements [prometheus.Collector].
func (certificateMetrics) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- expiryDesc }

// Collect implements [prometheus.Collector].
func (m certificateMetrics) Collect(metrics chan<- prometheus.Metric) {
	now := m.Get()
	export := func(certificate string, expiry time.Time) {
		metrics <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(expiry.Unix()), certificate)
	}
	export("server", now.own.Leaf.NotAfter)
	export("client_ca", now.clientsExpiry)
}

// latestExpiry returns the latest expiry of the certificates in PEM.
func latestExpiry(text []byte) (latest time.Time) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && certificate.NotAfter.After(latest) {
			latest = certificate.NotAfter
		}
	}
	return latest
}
