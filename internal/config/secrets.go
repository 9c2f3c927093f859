package config

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
)

// Secrets reloads secrets whose files change.
type Secrets struct{ files []secretFile }

type secretFile struct {
	setting string
	content *reload.Value[secret.Text]
	use     func(secret.Text) error
}

// On registers use, which is called with each new content of a setting's file. Its
// error means that the content is invalid. An empty path is ignored: the secret does
// not come from a file.
func (s *Secrets) On(setting, path string, use func(secret.Text) error) {
	if path == "" {
		return
	}
	content, err := reload.New(func(read reload.Read) (secret.Text, error) {
		content, err := read(path)
		return trim(content), err
	})
	if err != nil {
		return // the file has vanished since the settings were read
	}
	s.files = append(s.files, secretFile{setting, content, use})
}

// trim returns a secret without trailing line ends.
func trim(content []byte) secret.Text { return secret.New(strings.TrimRight(string(content), "\r\n")) }

// Split returns the comma-separated secrets of a setting.
func Split(text secret.Text) (all []secret.Text) {
	for one := range strings.SplitSeq(text.Reveal(), ",") {
		all = append(all, secret.New(strings.TrimSpace(one)))
	}
	return all
}

// Follow reloads the files at an interval until ctx ends. An invalid file leaves the
// secret unchanged.
func (s *Secrets) Follow(ctx context.Context, every time.Duration, log *zap.Logger) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, file := range s.files {
			changed, err := file.content.Check()
			if changed {
				err = file.use(file.content.Get())
			}
			switch {
			case err != nil:
				log.Error("secret not reloaded: invalid file; keeping the current secret", zap.String("setting", file.setting), zap.Error(err))
			case changed:
				log.Info("secret reloaded", zap.String("setting", file.setting))
			}
		}
	}
}
