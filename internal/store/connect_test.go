package store_test

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/secret"
	"tokenprovider/internal/store"
)

func TestConnectParsesEveryForm(t *testing.T) {
	for url, check := range map[string]func(*store.Connection) bool{
		"redis://u:p@h:1/3": func(c *store.Connection) bool {
			o := c.UniversalClient.(*redis.Client).Options()
			return o.Addr == "h:1" && o.DB == 3 && o.Password == "p" && o.ContextTimeoutEnabled && o.TLSConfig == nil
		},
		"rediss://h:1": func(c *store.Connection) bool {
			return c.UniversalClient.(*redis.Client).Options().TLSConfig.ServerName == "h"
		},
		"redis://h:1?read_timeout=7s": func(c *store.Connection) bool {
			o := c.UniversalClient.(*redis.Client).Options()
			return o.ReadTimeout.String() == "7s" && o.DialTimeout.String() == "1s"
		},
		"redis+sentinel://h:1/2?master_name=m&addr=h2:1": func(c *store.Connection) bool {
			o := c.UniversalClient.(*redis.Client).Options()
			return o.DB == 2 && o.Addr == "FailoverClient"
		},
		"redis+cluster://h:1?addr=h2:1": func(c *store.Connection) bool {
			return len(c.UniversalClient.(*redis.ClusterClient).Options().Addrs) == 2
		},
	} {
		client, err := store.Connect(secret.New(url))
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if !check(client) {
			t.Errorf("%s: wrong options", url)
		}
		_ = client.Close()
	}
}

func TestConnectErrorsQuoteNoPassword(t *testing.T) {
	for _, url := range []string{
		"", "hunter2", "redis://u:hunter2@h:x/0", "redis://u:hunter2@h:1/hunter2", "http://u:hunter2@h",
		"redis+magic://u:hunter2@h:1", "redis+sentinel://u:hunter2@h:1", "redis+sentinel://u:hunter2@h:1/x",
		"redis+cluster://u:hunter2@h:1?dial_timeout=hunter2", "redis://u:hunter2@h:1?nonsense=hunter2", "redis://\x00hunter2",
	} {
		_, err := store.Connect(secret.New(url))
		switch {
		case err == nil:
			t.Errorf("%q is accepted", url)
		case strings.Contains(err.Error(), "hunter2"):
			t.Errorf("the error quotes the password: %v", err)
		}
	}
}
