package keyset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// KMS is a key management service that can wrap keysets.
type KMS struct {
	// Example is a URI of a key, for error messages.
	Example string
	// Open returns the key with a URI. It makes no request: an inaccessible key
	// fails when it is used.
	Open func(ctx context.Context, uri string) (tink.AEAD, error)
}

var services struct {
	sync.RWMutex
	byScheme map[string]KMS
}

// RegisterKMS makes a service available for URIs of a scheme. The packages of the
// services call it when a program imports them, as database drivers do. It panics
// if the scheme is registered twice.
func RegisterKMS(scheme string, service KMS) {
	services.Lock()
	defer services.Unlock()
	if _, twice := services.byScheme[scheme]; twice {
		panic("keyset: KMS scheme " + scheme + " is registered twice")
	}
	if services.byScheme == nil {
		services.byScheme = map[string]KMS{}
	}
	services.byScheme[scheme] = service
}

// OpenKMS returns the key with a URI, from the service registered for its scheme.
// It makes no request: an inaccessible key fails when it is used.
func OpenKMS(ctx context.Context, uri string) (tink.AEAD, error) {
	services.RLock()
	defer services.RUnlock()
	var examples []string
	for _, service := range services.byScheme {
		examples = append(examples, service.Example)
	}
	slices.Sort(examples)
	forms := strings.Join(examples, " or ")
	scheme, name, _ := strings.Cut(uri, "://")
	if name == "" {
		return nil, errors.New("must be the URI of a KMS key: " + forms)
	}
	service, known := services.byScheme[scheme]
	if !known {
		return nil, fmt.Errorf("must be the URI of a KMS key: %s, not %s", forms, scheme)
	}
	return service.Open(ctx, uri)
}

// KMSTimeout is the time that a service has for one response.
const KMSTimeout = 10 * time.Second

// LimitTime returns a key whose calls fail after [KMSTimeout].
func LimitTime(key tink.AEADWithContext) tink.AEAD { return limited{key} }

type limited struct{ key tink.AEADWithContext }

func (l limited) Encrypt(plain, associated []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), KMSTimeout)
	defer cancel()
	return l.key.EncryptWithContext(ctx, plain, associated)
}

func (l limited) Decrypt(encrypted, associated []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), KMSTimeout)
	defer cancel()
	return l.key.DecryptWithContext(ctx, encrypted, associated)
}
