package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// check requests URLs, in images without another HTTP client.
type check struct {
	Timeout time.Duration `default:"30s" help:"Maximum time for all URLs together."`
	Want    []string      `arg:"" name:"url=status" help:"URL and expected status: http://host:9090/readyz=200."`
}

// run returns nil when every URL has returned its expected status.
func (c *check) run(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var faults []error
	for _, want := range c.Want {
		at := strings.LastIndex(want, "=")
		status, err := strconv.Atoi(want[at+1:])
		if at < 1 || err != nil {
			faults = append(faults, fmt.Errorf("check: %q is not URL=STATUS", want))
			continue
		}
		if err := await(ctx, want[:at], status); err != nil {
			faults = append(faults, fmt.Errorf("check: %w", err))
			continue
		}
		s.say("%s returned %d, as expected", want[:at], status)
		faults = append(faults, s.object(map[string]any{"url": want[:at], "status": status}))
	}
	return errors.Join(faults...)
}

// await requests a URL every second, and at least once, until it returns the status.
func await(ctx context.Context, url string, status int) error {
	for {
		got, err := get(context.WithoutCancel(ctx), url)
		switch {
		case err == nil && got == status:
			return nil
		case err == nil:
			err = fmt.Errorf("%s returned %d, want %d", url, got, status)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

func get(ctx context.Context, url string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}
