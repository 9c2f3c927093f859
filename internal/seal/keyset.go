package seal

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// A key is replaced in four steps, with time between them for every process to
// reload the keyset: [Wrapping.AddKey], which lets all processes decrypt with the new
// key; [Wrapping.Promote], which makes it encrypt; re-encryption of the stored values;
// [Wrapping.Disable] of the old key, once no value is encrypted with it.

// Wrapping reads and writes keysets in JSON, encrypted with a KMS key or, as the zero
// value, in clear. Each method takes a keyset and returns the changed one.
type Wrapping struct{ KMS tink.AEAD }

// Key is one key of a keyset.
type Key struct {
	ID      uint32
	Enabled bool
	Primary bool // encrypts new values
}

// Generate returns a new keyset with one AES-256-GCM key, in JSON and in clear.
func Generate() ([]byte, error) { return Wrapping{}.Generate() }

// New returns a new keyset that exists only in memory.
func New() (*Keyset, error) {
	json, err := Generate()
	if err != nil {
		return nil, err
	}
	return Parse(json)
}

// Generate returns a new keyset with one AES-256-GCM key, in JSON.
func (w Wrapping) Generate() ([]byte, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("generating key: %w", err)
	}
	return w.write(handle)
}

// Parse returns a keyset for use. The error never contains its content.
func (w Wrapping) Parse(json []byte) (*Keyset, error) {
	handle, err := w.read(json)
	if err != nil {
		return nil, err
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, errors.New("not a keyset for AEAD, or without an enabled primary key")
	}
	k := &Keyset{}
	k.current.Store(&state{primitive, keysOf(handle)})
	return k, nil
}

// AddKey adds a new key to a keyset. The key decrypts, but does not encrypt yet.
func (w Wrapping) AddKey(json []byte) (changed []byte, id uint32, err error) {
	changed, err = w.edit(json, func(m *keyset.Manager) error {
		id, err = m.Add(aead.AES256GCMKeyTemplate())
		return err
	})
	return changed, id, err
}

// Promote makes a key the primary one, which encrypts.
func (w Wrapping) Promote(json []byte, id uint32) ([]byte, error) {
	return w.edit(json, func(m *keyset.Manager) error { return m.SetPrimary(id) })
}

// Disable disables a key: values encrypted with it cannot be decrypted.
// [Wrapping.Enable] reverts that.
func (w Wrapping) Disable(json []byte, id uint32) ([]byte, error) {
	return w.edit(json, func(m *keyset.Manager) error { return m.Disable(id) })
}

// Enable reverts [Wrapping.Disable].
func (w Wrapping) Enable(json []byte, id uint32) ([]byte, error) {
	return w.edit(json, func(m *keyset.Manager) error { return m.Enable(id) })
}

// Rewrap returns the keyset with another wrapping.
func (w Wrapping) Rewrap(json []byte, with Wrapping) ([]byte, error) {
	handle, err := w.read(json)
	if err != nil {
		return nil, err
	}
	return with.write(handle)
}

func (w Wrapping) edit(json []byte, change func(*keyset.Manager) error) ([]byte, error) {
	handle, err := w.read(json)
	if err != nil {
		return nil, err
	}
	m := keyset.NewManagerFromHandle(handle)
	if err := change(m); err != nil {
		return nil, fmt.Errorf("changing the keyset: %w", err)
	}
	changed, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("changing the keyset: %w", err)
	}
	return w.write(changed)
}

// associated is the associated data of a wrapped keyset. It is empty, because not all
// KMS keys accept any.
var associated []byte

func (w Wrapping) read(json []byte) (*keyset.Handle, error) {
	reader := keyset.NewJSONReader(bytes.NewReader(json))
	if w.KMS == nil {
		handle, err := insecurecleartextkeyset.Read(reader)
		if err != nil {
			return nil, errors.New("not a Tink keyset in JSON, in clear")
		}
		return handle, nil
	}
	handle, err := keyset.ReadWithAssociatedData(reader, w.KMS, associated)
	if err != nil {
		return nil, errors.New("not a Tink keyset in JSON that this KMS key has wrapped, or the KMS does not unwrap it")
	}
	return handle, nil
}

func (w Wrapping) write(handle *keyset.Handle) ([]byte, error) {
	var json bytes.Buffer
	writer := keyset.NewJSONWriter(&json)
	var err error
	if w.KMS == nil {
		err = insecurecleartextkeyset.Write(handle, writer)
	} else {
		err = handle.WriteWithAssociatedData(writer, w.KMS, associated)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the keyset: %w", err)
	}
	return json.Bytes(), nil
}

func keysOf(handle *keyset.Handle) []Key {
	info := handle.KeysetInfo()
	keys := make([]Key, 0, len(info.GetKeyInfo()))
	for _, key := range info.GetKeyInfo() {
		keys = append(keys, Key{
			ID:      key.GetKeyId(),
			Enabled: key.GetStatus() == tinkpb.KeyStatusType_ENABLED,
			Primary: key.GetKeyId() == info.GetPrimaryKeyId(),
		})
	}
	return keys
}
