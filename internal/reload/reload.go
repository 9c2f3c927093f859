// Package reload keeps what was read from files in step with them, without a
// restart. It looks at the files' contents now and then: that also works where a
// secret is replaced by moving a link, as Kubernetes does it.
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

// Read reads a file, and has it looked at from then on.
type Read func(path string) ([]byte, error)

// Value is something that was read from files. It is safe for concurrent use.
type Value[T any] struct {
	load    func(Read) (T, error)
	current atomic.Pointer[T]
	seen    [sha256.Size]byte // of the contents that were loaded or refused last
}

// New loads a value. What load reads by its argument is what is looked at.
func New[T any](load func(Read) (T, error)) (*Value[T], error) {
	v := &Value[T]{load: load}
	loaded, sum, err := v.try()
	if err != nil {
		return nil, err
	}
	v.current.Store(&loaded)
	v.seen = sum
	return v, nil
}

// Get returns the value as it is now.
func (v *Value[T]) Get() T { return *v.current.Load() }

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

// Check loads the value again if its files have changed. It reports whether
// there is a new one; an error, which is told once for each change, leaves the old
// one in force.
func (v *Value[T]) Check() (changed bool, err error) {
	loaded, sum, err := v.try()
	if sum == v.seen {
		return false, nil
	}
	v.seen = sum
	if err != nil {
		return false, err
	}
	v.current.Store(&loaded)
	return true, nil
}

// Follow checks until ctx ends. What says in the log what the value is; then is
// called with each new one and may be nil. One goroutine may follow a value.
func (v *Value[T]) Follow(ctx context.Context, every time.Duration, log *zap.Logger, what string, then func(T)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, err := v.Check()
		switch {
		case err != nil:
			log.Error("the files of the "+what+" have changed and are of no use: what was read before stays in force", zap.Error(err))
		case changed:
			log.Info("the " + what + " was read again")
			if then != nil {
				then(v.Get())
			}
		}
	}
}

// YAML reads a document that has no fields but those of into. Its error says what
// is wrong and in which line, and quotes no value.
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
	return errors.New("not as expected: " + strings.TrimSpace(text))
}
