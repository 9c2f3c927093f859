package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// writeCertificates writes a CA certificate (ca.crt), and certificates and keys of the
// gRPC server (tls.crt, tls.key) and of a client (client.crt, client.key). Those two
// expire at notAfter.
func (f files) writeCertificates(notAfter time.Time) {
	f.t.Helper()
	key := newKey(f.t)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour * 365), KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(template *x509.Certificate, holder *ecdsa.PrivateKey) string {
		der, err := x509.CreateCertificate(rand.Reader, template, authority, holder.Public(), key)
		if err != nil {
			f.t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	f.write("ca.crt", sign(authority, key))
	for i, name := range []string{"tls", "client"} {
		holder := newKey(f.t)
		text, err := x509.MarshalPKCS8PrivateKey(holder)
		if err != nil {
			f.t.Fatal(err)
		}
		f.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})))
		f.write(name+".crt", sign(&x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano() + int64(i)), Subject: pkix.Name{CommonName: name},
			DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, holder))
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
