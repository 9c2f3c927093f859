package app

import (
	"net/http"
	"time"
)

// Outbound returns a client for Zoom and Recall. It keeps a connection open for
// each concurrent request, because a TLS handshake costs more than a request. The
// timeout limits a whole request. 0: only the request's context does.
func Outbound(timeout time.Duration) *http.Client {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if standard, ok := http.DefaultTransport.(*http.Transport); ok {
		transport = standard.Clone()
	}
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = 256, 512
	return &http.Client{Timeout: timeout, Transport: transport}
}
