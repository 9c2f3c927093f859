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

// zoomApp asks for a refresh with a token that is none. What Zoom says of it tells
// whether it knows the app: invalid_client comes before invalid_grant. Nothing is
// spent.
func (c Config) zoomApp(ctx context.Context, app App) Finding {
	_, err := app.Zoom.Refresh(ctx, secret.New("not-a-refresh-token"))
	var refused *zoom.RefusedError
	switch {
	case errors.Is(err, zoom.ErrInvalidGrant):
		return ok("Zoom knows client id and secret")
	case errors.Is(err, zoom.ErrInvalidClient):
		return fault("copy client id and secret from the app's page in Zoom's marketplace: until then nothing is renewed, and tokens end within an hour. No user has to consent again",
			"Zoom refuses client id or secret (invalid_client)")
	case errors.Is(err, zoom.ErrUnsent):
		return fault("see that ZOOM_OAUTH_URL can be reached from here: DNS, firewall, proxy, NetworkPolicy", "%v", plainly(err))
	case errors.As(err, &refused) && refused.Temporary():
		return warning("wait: renewals go on by themselves when Zoom answers again; see status.zoom.us", "%v", plainly(err))
	case err != nil:
		return warning("try again; see status.zoom.us", "%v", plainly(err))
	}
	return warning("see that ZOOM_OAUTH_URL is Zoom's", "Zoom has taken a token that is none")
}

// plainly is what Zoom said, without what was asked for it.
func plainly(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// recallFault is what an error of Recall's means, apart from its own subject.
func recallFault(err error) Finding {
	var refused *recall.RefusedError
	switch {
	case errors.Is(err, recall.ErrUnauthorized):
		return fault("copy an API key from Recall's dashboard; keys and RECALL_API_URL are of one region. Until then nobody can be registered; tokens are served all the same",
			"Recall refuses the API key")
	case errors.As(err, &refused) && (refused.Status == http.StatusTooManyRequests || refused.Status >= 500):
		return warning("wait: registrations go on by themselves when Recall answers again; see status.recall.ai", "%v", err)
	case errors.Is(err, recall.ErrUncertain):
		return fault("see that RECALL_API_URL can be reached from here: DNS, firewall, proxy, NetworkPolicy; see status.recall.ai", "%v", err)
	}
	return fault("see that RECALL_API_URL is Recall's", "%v", err)
}

func (c Config) recallKey(ctx context.Context) Finding {
	if c.Recall == nil {
		return notChecked("RECALL_API_KEY is not set here: only the registrar needs it")
	}
	if _, err := c.Recall.Apps(ctx, ""); err != nil {
		return recallFault(err)
	}
	return ok("Recall takes the API key")
}

func (c Config) recallApp(ctx context.Context, app App) Finding {
	switch {
	case c.Recall == nil:
		return notChecked("RECALL_API_KEY is not set here: only the registrar needs it")
	case app.OAuthApp == "":
		return notChecked("the settings do not name Recall's uuid of the app")
	}
	const mend = "copy the id of the app from Recall's dashboard (Zoom OAuth apps), of the workspace that the API key is of"
	same, err := c.Recall.Apps(ctx, app.ClientID)
	if err != nil {
		return recallFault(err)
	}
	byID := func(a recall.App) bool { return a.ID == app.OAuthApp }
	if slices.ContainsFunc(same, byID) {
		if _, _, err := c.Recall.Page(ctx, recall.Filter{OAuthApp: app.OAuthApp}, ""); err != nil {
			return recallFault(err)
		}
		return ok("Recall knows the app by the same client id")
	}
	all, err := c.Recall.Apps(ctx, "")
	switch {
	case err != nil:
		return recallFault(err)
	case slices.ContainsFunc(all, byID):
		return fault(mend, "Recall's app has another client id than ours at Zoom")
	}
	return fault(mend, "Recall knows no such app: nobody can be registered")
}

// callback calls an address that nobody has, as Recall would.
func (c Config) callback(ctx context.Context) Finding {
	if c.Callback == nil {
		return notChecked("CALLBACK_BASE_URL is not set here: only the registrar needs it")
	}
	if c.Callback.Host == "" {
		return notChecked("CALLBACK_BASE_URL is of no use")
	}
	target := callback.NewAddress(grant.NewID("", "")).URL(c.Callback)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.Reveal(), nil)
	if err != nil {
		return fault("set CALLBACK_BASE_URL to a URL", "it cannot be called")
	}
	response, err := c.http().Do(request)
	if err != nil {
		return unreached(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 64))
	ours := strings.TrimSpace(string(body)) == "not found" && response.Header.Get("Cache-Control") == "no-store"
	switch {
	case response.StatusCode == http.StatusNotFound && !ours:
		return fault("see that the ingress passes "+callback.Prefix+" on to the token server, with the path as it is",
			"something answers 404, but not the token server")
	case response.StatusCode >= 300 && response.StatusCode < 400:
		return fault("set CALLBACK_BASE_URL to where it redirects to, or stop the redirect: Recall may not follow it", "it answers %d, a redirect", response.StatusCode)
	case response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Cache-Control") == "no-store":
		return fault("see what is said of redis: the token server cannot ask it either", "the token server answers 503")
	case response.StatusCode >= 500:
		return fault("see that a token server runs and is ready, and that the ingress finds it", "it answers %d", response.StatusCode)
	case response.StatusCode != http.StatusNotFound:
		return fault("see what stands before the token server: Recall has to get through with nothing but the URL", "an unknown callback is answered %d, not 404", response.StatusCode)
	case response.TLS == nil && loopback(c.Callback.Hostname()):
		return warning("use a public https URL", "the token server answers, on this machine only and without TLS")
	case response.TLS == nil:
		return fault("put TLS before it, and CALLBACK_BASE_URL on https: Recall takes the new URL after a reconciliation", "the token server answers without TLS: tokens go over the network in clear")
	}
	f := c.expiry(response.TLS.PeerCertificates[:1], "renew the certificate of the ingress: when it ends, Recall gets no token")
	f.Found = "the token server answers as it should, from here; " + f.Found
	return f
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// unreached says why there is no answer. The error's own words hold the URL.
func unreached(err error) Finding {
	why := neterr.Describe(err)
	mend := "see that CALLBACK_BASE_URL can be reached: DNS, firewall, ingress, load balancer"
	if strings.Contains(why, "certificate") {
		mend = "give the ingress a certificate of a public authority, with its chain, that is good and has the name in CALLBACK_BASE_URL: Recall gets no token"
	} else if strings.Contains(why, "TLS") {
		mend = "put TLS before it, or use the port that has it"
	}
	return fault(mend, "it cannot be reached: %s", why)
}
