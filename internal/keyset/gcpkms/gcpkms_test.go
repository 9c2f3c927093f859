package gcpkms

import (
	"context"
	"hash/crc32"
	"net"
	"slices"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"tokenprovider/internal/keyset"
	"tokenprovider/internal/keyset/kmstest"
)

const key = "projects/p/locations/l/keyRings/r/cryptoKeys/tokens"

// service is a stand-in for Google Cloud KMS with one key. It "encrypts" by
// reversing the bytes, and keeps Google's rules for checksums
// (cloud.google.com/kms/docs/data-integrity-guidelines).
type service struct {
	kmspb.UnimplementedKeyManagementServiceServer
	denied bool
}

func checksum(data []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))))
}

func reverse(data []byte) []byte {
	data = slices.Clone(data)
	slices.Reverse(data)
	return data
}

func (s *service) check(name string) error {
	switch {
	case s.denied:
		return status.Error(codes.PermissionDenied, "denied")
	case name != key:
		return status.Error(codes.NotFound, name)
	}
	return nil
}

func (s *service) Encrypt(_ context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if err := s.check(r.GetName()); err != nil {
		return nil, err
	}
	if r.GetPlaintextCrc32C().GetValue() != checksum(r.GetPlaintext()).GetValue() {
		return nil, status.Error(codes.InvalidArgument, "plaintext_crc32c")
	}
	encrypted := reverse(r.GetPlaintext())
	return &kmspb.EncryptResponse{
		Name: key, Ciphertext: encrypted, CiphertextCrc32C: checksum(encrypted),
		VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
	}, nil
}

func (s *service) Decrypt(_ context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := s.check(r.GetName()); err != nil {
		return nil, err
	}
	plain := reverse(r.GetCiphertext())
	return &kmspb.DecryptResponse{Plaintext: plain, PlaintextCrc32C: checksum(plain)}, nil
}

func TestGoogle(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	google, server := &service{}, grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(server, google)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	opened, err := open(t.Context(), "gcp-kms://"+key,
		option.WithEndpoint(listener.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	kmstest.RoundTripKey(t, opened)

	google.denied = true
	kmstest.CheckDeniedKey(t, opened)
}

func TestMalformedURIs(t *testing.T) {
	for _, uri := range []string{"gcp-kms://", "gcp-kms://projects/p"} {
		if _, err := keyset.OpenKMS(t.Context(), uri); err == nil {
			t.Errorf("%q is accepted", uri)
		}
	}
}
