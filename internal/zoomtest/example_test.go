package zoomtest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"tokenprovider/internal/zoomtest"
)

// A refresh token works once.
func Example() {
	zoom := zoomtest.New(zoomtest.Options{})
	server := httptest.NewServer(zoom)
	defer server.Close()

	_, refresh := zoom.Grant(zoomtest.DefaultClientID, "ann")
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}
	for range 2 {
		r, _ := http.NewRequest(http.MethodPost, server.URL+"/oauth/token", strings.NewReader(form.Encode()))
		r.SetBasicAuth(zoomtest.DefaultClientID, zoomtest.DefaultClientSecret)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			fmt.Println(err)
			return
		}
		_ = response.Body.Close()
		fmt.Println(response.Status)
	}
	fmt.Println(zoom.Counts().Refreshes, zoom.Counts().SpentPresented)
	// Output:
	// 200 OK
	// 400 Bad Request
	// 1 1
}
