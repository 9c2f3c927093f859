package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"tokenprovider/internal/grant"
)

// JournaledResponse identifies a response of Zoom in a journal.
type JournaledResponse struct {
	ID        grant.ID
	OfConsent bool
	Spent     string // fingerprint of the spent code or token
	Refresh   string // fingerprint of the refresh token in the response
}

// ResponseStatus compares a response of Zoom with the record in Redis.
type ResponseStatus string

// The statuses of a response.
const (
	ResponseStored     ResponseStatus = "stored"     // Redis has it as the latest
	ResponseMissing    ResponseStatus = "missing"    // Redis has its predecessor: it must be committed
	ResponseSuperseded ResponseStatus = "superseded" // Redis has a later response
	ResponseNoGrant    ResponseStatus = "no_grant"   // the user was removed
)

// CheckResponses returns the status of responses, in their order.
func (s *Renewals) CheckResponses(ctx context.Context, responses []JournaledResponse) ([]ResponseStatus, error) {
	records, consents := make([]*redis.SliceCmd, len(responses)), make([]*redis.StringCmd, len(responses))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, a := range responses {
			records[i] = pipe.HMGet(ctx, grantKey(a.ID), "refresh_fingerprint", "consent")
			consents[i] = pipe.HGet(ctx, shardKey(a.ID.Shard(), "consents:"+string(a.ID)), a.Spent)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("checking responses: %w", err)
	}
	statuses := make([]ResponseStatus, len(responses))
	for i, a := range responses {
		refresh, _ := records[i].Val()[0].(string)
		consent, _ := records[i].Val()[1].(string)
		outcome := consents[i].Val()
		switch {
		case a.OfConsent && (consent == a.Spent || outcome == "stored"):
			statuses[i] = ResponseStored
		case a.OfConsent && (outcome == "void" || strings.HasPrefix(outcome, "conflict")):
			statuses[i] = ResponseSuperseded
		case a.OfConsent:
			statuses[i] = ResponseMissing
		case refresh == "":
			statuses[i] = ResponseNoGrant
		case refresh == a.Refresh:
			statuses[i] = ResponseStored
		case refresh == a.Spent:
			statuses[i] = ResponseMissing
		default:
			statuses[i] = ResponseSuperseded
		}
	}
	return statuses, nil
}
