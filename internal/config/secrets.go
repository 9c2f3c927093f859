package config

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"tokenprovider/internal/reload"
	"tokenprovider/internal/secret"
)

// Secrets keeps secrets that were read from files in step with them: each is taken
// again when its file changes.
type Secrets struct{ files []secretFile }

type secretFile struct {
	setting string
	content *reload.Value[secret.Text]
	take    func(secret.Text) error
}

// On has take called with what the file of a setting holds, whenever that changes.
// An empty path is not followed: the secret is from elsewhere.
func (s *Secrets) On(setting, path string, take func(secret.Text) error) {
	if path == "" {
		return
	}
	content, err := reload.New(func(read reload.Read) (secret.Text, error) {
		content, err := read(path)
		return trim(content), err
	})
	if err != nil {
		return // it was there a moment ago, when the settings were read
	}
	s.files = append(s.files, secretFile{setting, content, take})
}

// trim is a secret without the end of its line.
func trim(content []byte) secret.Text { return secret.New(strings.TrimRight(string(content), "\r\n")) }

// Split returns the secrets that a setting holds, separated by commas.
func Split(text secret.Text) (all []secret.Text) {
	for one := range strings.SplitSeq(text.Reveal(), ",") {
		all = append(all, secret.New(strings.TrimSpace(one)))
	}
	return all
}

// Follow looks at the files until ctx ends. A file that is of no use leaves the
// secret as it was.
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
				err = file.take(file.content.Get())
			}
			switch {
			case err != nil:
				log.Error("the file of a secret has changed and is of no use: the one that was read before stays in use",
					zap.String("setting", file.setting), zap.Error(err))
			case changed:
				log.Info("a secret was read again", zap.String("setting", file.setting))
			}
		}
	}
}
