package tokenserver

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tokenprovider/internal/secret"
)

// Verifier checks the signatures that Recall adds to its requests once the
// workspace has a verification secret (docs.recall.ai, authenticating requests).
// The scheme is Standard Webhooks: headers webhook-id, webhook-timestamp and
// webhook-signature, HMAC-SHA256 over "id.timestamp.body", a tolerance of five
// minutes in both directions. It is safe for concurrent use.
//
// It accepts what the Standard Webhooks library accepts; a fuzz test compares the
// two. Unlike the library it keeps each secret's keyed HMAC and allocates nothing,
// because every callback pays for it.
type Verifier struct{ secrets atomic.Pointer[[]*signer] }

const (
	signaturePrefix = "whsec_"
	tolerance       = 5 * time.Minute
	minSecret       = 16 // bytes; the scheme requires 24 to 64
)

// NewVerifier returns a verifier that accepts a signature with any of secrets,
// each of the form whsec_…. It returns an error if there are none, or if one of
// them is malformed.
func NewVerifier(secrets []secret.Text) (*Verifier, error) {
	v := &Verifier{}
	return v, v.SetSecrets(secrets)
}

// SetSecrets replaces the secrets. On an error it changes nothing.
func (v *Verifier) SetSecrets(secrets []secret.Text) error {
	if len(secrets) == 0 {
		return errors.New("no verification secret")
	}
	var signers []*signer
	for _, text := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text.Reveal(), signaturePrefix))
		if err != nil || len(key) < minSecret {
			return errors.New("each verification secret must be of the form whsec_… (base64 of at least 16 bytes)")
		}
		signers = append(signers, newSigner(key))
	}
	v.secrets.Store(&signers)
	return nil
}

// Verify reports whether the headers of a request without a body have a valid
// signature whose timestamp is within five minutes of now.
func (v *Verifier) Verify(header http.Header, now time.Time) bool {
	id, presented := header.Get("Webhook-Id"), header.Get("Webhook-Signature")
	timestamp, err := strconv.ParseInt(header.Get("Webhook-Timestamp"), 10, 64)
	if id == "" || err != nil {
		return false
	}
	if age := now.Sub(time.Unix(timestamp, 0)); age > tolerance || age < -tolerance {
		return false
	}
	for _, secret := range *v.secrets.Load() {
		if secret.signed(id, timestamp, presented) {
			return true
		}
	}
	return false
}

// signer computes the signatures of one secret.
type signer struct{ pool sync.Pool }

const signatureLength = 44 // HMAC-SHA256 in base64

// work holds the buffers of one signature, for reuse.
type work struct {
	mac                 hash.Hash
	text                []byte
	sum                 [sha256.Size]byte
	expected, presented [signatureLength]byte
}

func newSigner(key []byte) *signer {
	return &signer{pool: sync.Pool{New: func() any { return &work{mac: hmac.New(sha256.New, key)} }}}
}

// signed reports whether one of the presented signatures was made with this
// secret. They are separated by spaces, and each has its version.
func (s *signer) signed(id string, timestamp int64, presented string) bool {
	w, _ := s.pool.Get().(*work)
	defer s.pool.Put(w)
	w.text = append(w.text[:0], id...)
	w.text = append(w.text, '.')
	w.text = strconv.AppendInt(w.text, timestamp, 10)
	w.text = append(w.text, '.')
	w.mac.Reset()
	w.mac.Write(w.text)
	base64.StdEncoding.Encode(w.expected[:], w.mac.Sum(w.sum[:0]))
	for rest, more := presented, true; more; {
		var one string
		one, rest, more = strings.Cut(rest, " ")
		version, signature, _ := strings.Cut(one, ",")
		signature, _, _ = strings.Cut(signature, ",")
		if version != "v1" || len(signature) != signatureLength {
			continue
		}
		copy(w.presented[:], signature)
		if subtle.ConstantTimeCompare(w.presented[:], w.expected[:]) == 1 {
			return true
		}
	}
	return false
}
