package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// CertificateFile is a PEM file with certificates.
type CertificateFile struct {
	Setting string
	Path    string
	KeyPath string // file with the key of the first certificate; empty for authorities
}

// minValidity is the remaining validity below which a certificate is reported.
const minValidity = 14 * 24 * time.Hour

// certificate checks the certificates of a file, and the key.
func (c Config) certificate(file CertificateFile) Finding {
	content, err := os.ReadFile(file.Path)
	if err != nil {
		return fault("name an existing, readable file", "the file cannot be read")
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fault("replace the file by PEM certificates", "a certificate in the file cannot be parsed")
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return fault("replace the file by PEM certificates", "no certificate in the file")
	}
	if file.KeyPath != "" {
		if _, err := tls.LoadX509KeyPair(file.Path, file.KeyPath); err != nil {
			return fault("set a certificate and its key", "the key cannot be read, or is another certificate's")
		}
	}
	return c.expiry(all, "renew it: the programs reload the file by themselves")
}

// expiry returns the finding for the certificate that expires first.
func (c Config) expiry(certificates []*x509.Certificate, fix string) Finding {
	first, now := certificates[0], c.Now()
	for _, one := range certificates {
		if one.NotAfter.Before(first.NotAfter) {
			first = one
		}
	}
	end := first.NotAfter.UTC().Format("2006-01-02 15:04") + " UTC"
	switch left := first.NotAfter.Sub(now); {
	case left <= 0:
		return fault(fix, "certificate of %s has expired: %s", first.Subject.CommonName, end)
	case now.Before(first.NotBefore):
		return fault("correct the clock, or wait", "certificate of %s is not valid before %s", first.Subject.CommonName, first.NotBefore.UTC().Format(time.RFC3339))
	case left < minValidity:
		return warning(fix, "certificate expires in %s: %s", count(int(left.Hours()/24), "day"), end)
	default:
		return ok("certificate expires in %s: %s", count(int(left.Hours()/24), "day"), end)
	}
}

// registrar calls the health service of a registrar, as a client.
func (c Config) registrar(ctx context.Context) Finding {
	if c.Registrar == nil {
		return notChecked("REGISTRAR_ADDR is not set; set it, with a client certificate, on a client of the registrar")
	}
	var server peer.Peer
	response, err := healthpb.NewHealthClient(c.Registrar).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&server), grpc.WaitForReady(false))
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return fault("check that REGISTRAR_ADDR is reachable from here", "no response in time")
	case err != nil:
		return fault("check that the registrar runs, that REGISTRAR_ADDR is right, and that both certificates are valid. If it serves plaintext, set REGISTRAR_INSECURE=true", "%s", status.Convert(err).Message())
	case response.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return fault("see its log: usually Redis is unreachable", "the registrar is not ready")
	}
	if info, secure := server.AuthInfo.(credentials.TLSInfo); secure && len(info.State.PeerCertificates) > 0 {
		f := c.expiry(info.State.PeerCertificates[:1], "renew the registrar's certificate: it reloads the file by itself")
		f.Found = "the registrar is ready; its " + f.Found
		return f
	}
	return warning("configure its certificates, and unset GRPC_INSECURE", "the registrar serves plaintext: every client that can connect can obtain tokens")
}
