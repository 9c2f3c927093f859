package tokenserver

import (
	"io"
	"net/http"
	"strconv"
)

// Header values that many responses share, so that a response allocates none of
// them. net/http does not change them.
var (
	plainText = []string{"text/plain; charset=utf-8"}
	noStore   = []string{"no-store"}
)

// lengths holds the shared values of Content-Length. Zoom's tokens have 700 to
// 900 bytes.
var lengths = func() (values [2048][]string) {
	for n := range values {
		values[n] = []string{strconv.Itoa(n)}
	}
	return values
}()

func contentLength(n int) []string {
	if n < len(lengths) {
		return lengths[n]
	}
	return []string{strconv.Itoa(n)}
}

// WriteToken writes a 200 response whose body is the token and nothing else.
func WriteToken(w http.ResponseWriter, token string) {
	header := w.Header()
	header["Content-Type"] = plainText
	header["Cache-Control"] = noStore
	header["Content-Length"] = contentLength(len(token))
	_, _ = io.WriteString(w, token) // fails if the caller has left
}

// WriteNotFound writes the response to a URL that proves nothing. Its bytes are
// the same for every protocol and path.
func WriteNotFound(w http.ResponseWriter) { writeError(w, http.StatusNotFound, "not found") }

// writeError writes an error response in plain text that no cache stores.
func writeError(w http.ResponseWriter, status int, text string) {
	w.Header()["Cache-Control"] = noStore
	http.Error(w, text, status)
}
