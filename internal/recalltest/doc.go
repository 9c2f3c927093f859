// Package recalltest is a strict, scriptable stand-in for Recall.ai's Zoom
// OAuth credential API, in the manner of net/http/httptest.
//
// Start with [New]: the [Recall] it returns is an http.Handler that keeps
// credentials in memory and, when one is created with an
// access_token_callback_url, calls that URL back while the create request is
// still open. [Recall.Callback] calls the URL again, as Recall does when a bot joins
// a meeting. [Recall.Fail] injects faults, and [Recall.Counts] and
// [Recall.Credentials] show the result.
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
// leave a choice, it is strict, so that a test shows a mistake: unknown JSON fields
// and query parameters are refused, a callback is not redirected, its response must
// be one line of text/plain without surrounding white space, and a credential whose
// callback returns another Zoom user's token is unhealthy.
//
// # Limits
//
// The wording of messages, the fields of a log entry and the order of a list
// (here: oldest first) are not documented by Recall; do not depend on them. The
// rate limits count each kind of request separately, over a sliding minute. An
// authorization code is accepted without a check, and its credential has no Zoom
// user. Meetings are never synced, no bot ever joins,
// and a credential conflicts with another by its Zoom user only.
package recalltest
