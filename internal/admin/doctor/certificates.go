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

// CertificateFile is a file with certificates, in PEM.
type CertificateFile struct {
	Setting string
	Path    string
	KeyPath string // file with the first certificate's key; empty for authorities
}

// soon is how long before its end a certificate should have been renewed.
const soon = 14 * 24 * time.Hour

func (c Config) certificate(file CertificateFile) Finding {
	content, err := os.ReadFile(file.Path)
	if err != nil {
		return fault("name a file that can be read from here", "the file cannot be read")
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fault("put certificates in PEM into it", "a certificate in it cannot be read")
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return fault("put certificates in PEM into it", "there is no certificate in it")
	}
	if file.KeyPath != "" {
		if _, err := tls.LoadX509KeyPair(file.Path, file.KeyPath); err != nil {
			return fault("give certificate and key that belong together", "its key cannot be read, or is another certificate's")
		}
	}
	return c.expiry(all, "renew it: the programs read the new one by themselves")
}

// expiry judges certificates by the one that ends first.
func (c Config) expiry(certificates []*x509.Certificate, mend string) Finding {
	first, now := certificates[0], c.Now()
	for _, one := range certificates {
		if one.NotAfter.Before(first.NotAfter) {
			first = one
		}
	}
	end := first.NotAfter.UTC().Format("2006-01-02 15:04") + " UTC"
	switch left := first.NotAfter.Sub(now); {
	case left <= 0:
		return fault(mend, "certificate of %s has expired: %s", first.Subject.CommonName, end)
	case now.Before(first.NotBefore):
		return fault("set the clock, or wait", "certificate of %s is not valid before %s", first.Subject.CommonName, first.NotBefore.UTC().Format(time.RFC3339))
	case left < soon:
		return warning(mend, "certificate ends in %s: %s", count(int(left.Hours()/24), "day"), end)
	default:
		return ok("certificate ends in %s: %s", count(int(left.Hours()/24), "day"), end)
	}
}

// registrar asks a registrar for its health, by the way that clients take.
func (c Config) registrar(ctx context.Context) Finding {
	if c.Registrar == nil {
		return notChecked("REGISTRAR_ADDR is not set: set it, with a client's certificate, where a client of the registrar runs")
	}
	var caller peer.Peer
	answer, err := healthpb.NewHealthClient(c.Registrar).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&caller), grpc.WaitForReady(false))
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return fault("see that REGISTRAR_ADDR can be reached from here", "no answer in time")
	case err != nil:
		return fault("see that it runs, that REGISTRAR_ADDR is right, and that both certificates are good; if it serves plaintext, set REGISTRAR_INSECURE=true", "%s", status.Convert(err).Message())
	case answer.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return fault("see its log: most often Redis does not answer it", "it answers that it is not ready")
	}
	if info, secure := caller.AuthInfo.(credentials.TLSInfo); secure && len(info.State.PeerCertificates) > 0 {
		f := c.expiry(info.State.PeerCertificates[:1], "renew the registrar's certificate: it reads the new one by itself")
		f.Found = "it answers; its " + f.Found
		return f
	}
	return warning("give it certificates, and take GRPC_INSECURE away", "it answers in plaintext: whoever can connect can take tokens")
}
