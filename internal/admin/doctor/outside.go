package doctor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"tokenprovider/internal/callback"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/neterr"
	"tokenprovider/internal/recall"
	"tokenprovider/internal/secret"
	"tokenprovider/internal/zoom"
)

// zoomApp refreshes an invalid refresh token, which spends nothing. Zoom checks the
// client before the token: invalid_client means that it rejects the app, and
// invalid_grant that it accepts it.
func (c Config) zoomApp(ctx context.Context, app App) Finding {
	_, err := app.Zoom.Refresh(ctx, secret.New("not-a-refresh-token"))
	var refused *zoom.RefusedError
	switch {
	case errors.Is(err, zoom.ErrInvalidGrant):
		return ok("Zoom accepts the client id and secret")
	case errors.Is(err, zoom.ErrInvalidClient):
		return fault("copy the client id and secret from the app's page in the Zoom App Marketplace. Until then no token is renewed, and tokens expire within an hour. No user must consent again",
			"Zoom rejects the client id or secret (invalid_client)")
	case errors.Is(err, zoom.ErrUnsent):
		return fault("check that ZOOM_OAUTH_URL is reachable from here: DNS, firewall, proxy, NetworkPolicy", "%v", cause(err))
	case errors.As(err, &refused) && refused.Temporary():
		return warning("wait: renewals resume by themselves when Zoom recovers; see status.zoom.us", "%v", cause(err))
	case err != nil:
		return warning("try again; see status.zoom.us", "%v", cause(err))
	}
	return warning("check that ZOOM_OAUTH_URL is Zoom's", "Zoom accepts an invalid refresh token")
}

// cause returns the error without the name of the call.
func cause(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// recallFault returns the finding for an error of a call to Recall.
func recallFault(err error) Finding {
	var refused *recall.RefusedError
	switch {
	case errors.Is(err, recall.ErrUnauthorized):
		return fault("copy an API key from Recall's dashboard, of the region of RECALL_API_URL. Until then no user can be registered; tokens are still served",
			"Recall rejects the API key")
	case errors.As(err, &refused) && (refused.Status == http.StatusTooManyRequests || refused.Status >= 500):
		return warning("wait: registrations resume by themselves when Recall recovers; see status.recall.ai", "%v", err)
	case errors.Is(err, recall.ErrUncertain):
		return fault("check that RECALL_API_URL is reachable from here: DNS, firewall, proxy, NetworkPolicy; see status.recall.ai", "%v", err)
	}
	return fault("check that RECALL_API_URL is Recall's", "%v", err)
}

const noRecallKey = "RECALL_API_KEY is not set; only the registrar needs it"

func (c Config) recallKey(ctx context.Context) Finding {
	if c.Recall == nil {
		return notChecked(noRecallKey)
	}
	if _, err := c.Recall.Apps(ctx, ""); err != nil {
		return recallFault(err)
	}
	return ok("Recall accepts the API key")
}

// recallApp checks that Recall has the app by the configured uuid, with the same
// client id.
func (c Config) recallApp(ctx context.Context, app App) Finding {
	switch {
	case c.Recall == nil:
		return notChecked(noRecallKey)
	case app.OAuthApp == "":
		return notChecked("the app's uuid at Recall is not set")
	}
	const fix = "copy the app's id from Recall's dashboard (Zoom OAuth apps), in the workspace of the API key"
	same, err := c.Recall.Apps(ctx, app.ClientID)
	if err != nil {
		return recallFault(err)
	}
	byID := func(a recall.App) bool { return a.ID == app.OAuthApp }
	if slices.ContainsFunc(same, byID) {
		if _, _, err := c.Recall.Page(ctx, recall.Filter{OAuthApp: app.OAuthApp}, ""); err != nil {
			return recallFault(err)
		}
		return ok("Recall has the app, with the same client id")
	}
	all, err := c.Recall.Apps(ctx, "")
	switch {
	case err != nil:
		return recallFault(err)
	case slices.ContainsFunc(all, byID):
		return fault(fix, "the app at Recall has another client id than the one at Zoom")
	}
	return fault(fix, "Recall has no such app: no user can be registered")
}

// callback requests an unknown callback URL, as Recall does. The token server returns
// 404, uncached, with a body that identifies it.
func (c Config) callback(ctx context.Context) Finding {
	if c.Callback == nil {
		return notChecked("CALLBACK_BASE_URL is not set; only the registrar needs it")
	}
	if c.Callback.Host == "" {
		return notChecked("CALLBACK_BASE_URL is invalid")
	}
	target := callback.NewAddress(grant.NewID("", "")).URL(c.Callback)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.Reveal(), nil)
	if err != nil {
		return fault("set CALLBACK_BASE_URL to a valid URL", "the URL cannot be requested")
	}
	response, err := c.http().Do(request)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 64))
	ours := strings.TrimSpace(string(body)) == "not found" && response.Header.Get("Cache-Control") == "no-store"
	switch {
	case response.StatusCode == http.StatusNotFound && !ours:
		return fault("check that the ingress routes "+callback.Prefix+" to the token server, with the path unchanged",
			"the response is 404, but not the token server's")
	case response.StatusCode >= 300 && response.StatusCode < 400:
		return fault("set CALLBACK_BASE_URL to the target of the redirect, or remove the redirect: Recall may not follow it", "the response is %d, a redirect", response.StatusCode)
	case response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Cache-Control") == "no-store":
		return fault("see the check redis: the token server cannot read from Redis either", "the token server returns 503")
	case response.StatusCode >= 500:
		return fault("check that a token server runs and is ready, and that the ingress routes to it", "the response is %d", response.StatusCode)
	case response.StatusCode != http.StatusNotFound:
		return fault("check the proxies in front of the token server: Recall sends no credentials but the URL", "the response to an unknown callback URL is %d, not 404", response.StatusCode)
	case response.TLS == nil && isLoopback(c.Callback.Hostname()):
		return warning("use a public https URL", "the token server responds without TLS, on this machine only")
	case response.TLS == nil:
		return fault("serve it over TLS, and set CALLBACK_BASE_URL to https: a reconciliation changes the URL at Recall", "the token server responds without TLS: tokens cross the network in clear text")
	}
	f := c.expiry(response.TLS.PeerCertificates[:1], "renew the certificate of the ingress: once it expires, Recall gets no token")
	f.Found = "the token server responds; its " + f.Found
	return f
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// unreachable returns the finding for a request without a response. It does not quote
// the error, which has the URL.
func unreachable(err error) Finding {
	cause := neterr.Describe(err)
	fix := "check that CALLBACK_BASE_URL is reachable: DNS, firewall, ingress, load balancer"
	if strings.Contains(cause, "certificate") {
		fix = "give the ingress a valid certificate of a public authority, with its chain, for the host in CALLBACK_BASE_URL: until then Recall gets no token"
	} else if strings.Contains(cause, "TLS") {
		fix = "serve it over TLS, or use the port that has TLS"
	}
	return fault(fix, "unreachable: %s", cause)
}
