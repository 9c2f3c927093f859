// Package recalltest is a strict, scriptable stand-in for Recall.ai's Zoom
// OAuth credential API, in the manner of net/http/httptest.
//
// [New] returns a [Recall], an http.Handler that stores credentials in memory. When
// one is created with an access_token_callback_url, it calls that URL during the create
// request. [Recall.Callback] requests a token, as Recall does when a bot joins a
// meeting. [Recall.Fail] injects faults; [Recall.Counts] and [Recall.Credentials]
// report the results.
//
// It serves, under the same paths as Recall:
//
//	POST   /api/v2/zoom-oauth-credentials/
//	GET    /api/v2/zoom-oauth-credentials/
//	GET    /api/v2/zoom-oauth-credentials/{id}/
//	DELETE /api/v2/zoom-oauth-credentials/{id}/
//	GET    /api/v2/zoom-oauth-credential-logs/
//	GET    /api/v2/zoom-oauth-apps/
//
// Its behaviour follows docs.recall.ai, the API reference and the guides. Where these
// leave a choice, it is strict, to expose mistakes in tests: unknown JSON fields and
// query parameters are rejected, redirects of a callback are not followed, its response
// must be one line of text/plain without surrounding white space, and a credential
// whose callback returns another Zoom user's token is unhealthy.
//
// # Limits
//
// Recall does not document the wording of messages, the fields of a log entry and the
// order of a list (here: oldest first); do not depend on them. Rate limits count each
// kind of request separately, over a sliding minute. An authorization code is accepted
// unverified, and its credential has no Zoom user. Meetings are never synced, no bot
// ever joins, and a credential conflicts with another only by its Zoom user.
package recalltest
