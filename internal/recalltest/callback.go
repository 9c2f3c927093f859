package recalltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// minTTL is the lifetime that a token must have left when Recall gets it.
const minTTL = 120 * time.Second

// maxToken limits a callback's response; Zoom's tokens have less than 1 KiB.
const maxToken = 16 << 10

// logEntry is an entry of a credential's log.
type logEntry struct {
	seq                     int
	id, credential, message string
	created                 time.Time
}

func (l logEntry) body() any {
	return map[string]any{
		"id":         l.id,
		"credential": l.credential,
		"level":      "error",
		"message":    l.message,
		"created_at": timestamp(l.created),
	}
}

// called is the result of a callback.
type called struct {
	token, userID, accountID string
	status                   int // 0: no response
}

// Callback calls a credential's URL, as Recall does when a bot joins a meeting. It
// returns the token and the response's status, also with an error; 0: no response.
//
// The response is checked as for a create, and the token must be the same Zoom
// user's as then. The credential's status becomes "healthy", or "unhealthy" with an
// entry in its log. The end of ctx is a failure like any other.
func (r *Recall) Callback(ctx context.Context, credentialID string) (token string, status int, err error) {
	r.mu.Lock()
	i := r.indexLocked(credentialID)
	if i < 0 {
		r.mu.Unlock()
		return "", 0, fmt.Errorf("recalltest: no credential %q", credentialID)
	}
	c := r.credentials[i].Credential
	r.mu.Unlock()
	if c.AccessTokenCallbackURL == "" {
		return "", 0, fmt.Errorf("recalltest: credential %q has no callback URL", credentialID)
	}

	got, err := r.call(ctx, c.AccessTokenCallbackURL, c.UserID)

	r.mu.Lock()
	defer r.mu.Unlock()
	health := "healthy"
	if err != nil {
		health = "unhealthy"
		r.seq++
		r.logs = append(r.logs, logEntry{
			seq:        r.seq,
			id:         newUUID(),
			credential: credentialID,
			message:    err.Error(),
			created:    r.opts.Now().UTC().Truncate(time.Microsecond),
		})
	}
	// It may have been deleted meanwhile.
	if i := r.indexLocked(credentialID); i >= 0 {
		r.credentials[i].Status = health
	}
	if err != nil {
		return "", got.status, fmt.Errorf("recalltest: %w", err)
	}
	return got.token, got.status, nil
}

// call makes one callback, checks its response, and counts it. With an empty userID,
// any Zoom user's token is accepted. Errors contain neither the URL nor the token,
// which are secret.
func (r *Recall) call(ctx context.Context, target, userID string) (called, error) {
	r.mu.Lock()
	r.counts.Callbacks++
	r.mu.Unlock()

	got, err := r.fetch(ctx, target)
	if err == nil && r.opts.Identify != nil {
		var ttl time.Duration
		got.userID, got.accountID, ttl, err = r.opts.Identify(ctx, got.token)
		switch {
		case err != nil:
			err = fmt.Errorf("the access token is not accepted by Zoom: %w", err)
		case ttl < minTTL:
			err = fmt.Errorf("the access token expires in %v; must be valid for at least %v", ttl, minTTL)
		case userID != "" && userID != got.userID:
			err = errors.New("the access token is another Zoom user's")
		}
	}
	if err != nil {
		r.mu.Lock()
		r.counts.CallbackFailures++
		r.mu.Unlock()
	}
	return got, err
}

// fetch makes one callback and checks the form of its response.
func (r *Recall) fetch(ctx context.Context, target string) (called, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return called{}, errors.New("the callback URL is not valid")
	}
	r.sign(req.Header)
	resp, err := r.client.Do(req)
	if err != nil {
		if urlErr, ok := errors.AsType[*url.Error](err); ok {
			err = urlErr.Err
		}
		return called{}, fmt.Errorf("the callback could not be reached: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()

	got := called{status: resp.StatusCode}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return got, fmt.Errorf("reading the callback's response: %w", err)
	}
	token := string(body)
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode != http.StatusOK:
		return got, fmt.Errorf("the callback returned status %d, not 200", resp.StatusCode)
	case err != nil || media != "text/plain":
		return got, errors.New("the callback's response is not text/plain")
	case token == "":
		return got, errors.New("the callback's response is empty")
	case len(token) > maxToken:
		return got, errors.New("the callback's response is too long")
	case token != strings.TrimSpace(token):
		return got, errors.New("the callback's response has white space around the token")
	case strings.ContainsAny(token, "\r\n"):
		return got, errors.New("the callback's response has more than one line")
	}
	got.token = token
	return got, nil
}

// sign adds the headers of Standard Webhooks for an empty body, if there are
// secrets.
func (r *Recall) sign(h http.Header) {
	r.mu.Lock()
	signers := r.signers
	r.mu.Unlock()
	if len(signers) == 0 {
		return
	}
	id, now := "msg_"+newUUID(), r.opts.Now()
	var signatures []string
	for _, signer := range signers {
		signature, _ := signer.Sign(id, now, nil) // its error is always nil
		signatures = append(signatures, signature)
	}
	h.Set(standardwebhooks.HeaderWebhookID, id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
}
