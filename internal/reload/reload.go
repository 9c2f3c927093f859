// Package reload reloads values from files when the files change, without a
// restart. It polls the files' contents. So it also works where a secret is
// replaced by moving a symbolic link, as Kubernetes does.
package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"
)

// Read reads a file, and adds it to the files whose changes are detected.
type Read func(path string) ([]byte, error)

// Value is a value that was loaded from files. [Value.Get] is safe for concurrent
// use; the other methods belong to one goroutine.
type Value[T any] struct {
	load    func(Read) (T, error)
	current atomic.Pointer[T]
	last    [sha256.Size]byte // checksum of the contents at the last load, successful or not
}

// New loads a value. The files that load reads through its argument are polled.
func New[T any](load func(Read) (T, error)) (*Value[T], error) {
	v := &Value[T]{load: load}
	loaded, sum, err := v.try()
	if err != nil {
		return nil, err
	}
	v.current.Store(&loaded)
	v.last = sum
	return v, nil
}

// Get returns the current value.
func (v *Value[T]) Get() T { return *v.current.Load() }

// try loads the value, and returns it with the checksum of its files.
func (v *Value[T]) try() (T, [sha256.Size]byte, error) {
	sum := sha256.New()
	loaded, err := v.load(func(path string) ([]byte, error) {
		content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
		_, _ = fmt.Fprintf(sum, "%s %d %v\n", path, len(content), err)
		_, _ = sum.Write(content)
		return content, err
	})
	return loaded, [sha256.Size]byte(sum.Sum(nil)), err
}

// Check reloads the value if its files have changed, and reports whether it did.
// If the new contents are invalid, it returns an error once, and the value stays
// as it was.
func (v *Value[T]) Check() (changed bool, err error) {
	loaded, sum, err := v.try()
	if sum == v.last {
		return false, nil
	}
	v.last = sum
	if err != nil {
		return false, err
	}
	v.current.Store(&loaded)
	return true, nil
}

// Follow checks the files at each interval until ctx ends. It logs each reload with
// what, the value's name, and passes the new value to changed, which may be nil.
func (v *Value[T]) Follow(ctx context.Context, interval time.Duration, log *zap.Logger, what string, changed func(T)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		reloaded, err := v.Check()
		switch {
		case err != nil:
			log.Error(what+" changed but invalid; keeping the previous value", zap.Error(err))
		case reloaded:
			log.Info(what + " reloaded")
			if changed != nil {
				changed(v.Get())
			}
		}
	}
}

// YAML decodes a document into the value that into points to. A field that the
// value does not have is an error. The error states the fault and its line, and
// quotes no value.
func YAML(content []byte, into any) error {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	err := decoder.Decode(into)
	if err == nil {
		return nil
	}
	text := err.Error()
	var fault *yaml.TypeError
	if errors.As(err, &fault) && len(fault.Errors) > 0 {
		text = fault.Errors[0]
	}
	text, _, _ = strings.Cut(text, "`")
	text, _, _ = strings.Cut(text, " in type ")
	return errors.New("decoding YAML: " + strings.TrimSpace(text))
}
