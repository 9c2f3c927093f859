package app

import (
	"net/http"
	"time"

	"tokenprovider/internal/telemetry"
)

// Outbound returns a client for Zoom and Recall. Connections are kept for as many
// requests as there are at once: a handshake for each would cost more than the
// request. The timeout is for a whole request; 0: its context says.
func Outbound(timeout time.Duration) *http.Client {
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return &http.Client{Timeout: timeout, Transport: telemetry.Transport(http.DefaultTransport)} // somebody has replaced it
	}
	transport = transport.Clone()
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = 256, 512
	return &http.Client{Timeout: timeout, Transport: telemetry.Transport(transport)}
}
