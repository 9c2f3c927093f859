package recalltest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"tokenprovider/internal/recalltest"
)

func Example() {
	// The server under test: it returns a token to Recall's callbacks.
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "zoom-access-token")
	}))
	defer provider.Close()

	recall := recalltest.New(recalltest.Options{
		Identify: func(context.Context, string) (userID, accountID string, ttl time.Duration, err error) {
			return "zoom-user", "zoom-account", time.Hour, nil
		},
	})
	api := httptest.NewServer(recall)
	defer api.Close()

	body := fmt.Sprintf(`{"oauth_app": %q, "access_token_callback_url": %q}`,
		recalltest.DefaultOAuthApp, provider.URL+"/callback")
	req, _ := http.NewRequest("POST", api.URL+"/api/v2/zoom-oauth-credentials/", strings.NewReader(body))
	req.Header.Set("Authorization", "Token recall-key")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()

	credential := recall.Credentials()[0]
	fmt.Println(resp.StatusCode, credential.Status, credential.UserID)

	token, status, err := recall.Callback(context.Background(), credential.ID)
	fmt.Println(token, status, err)
	// Output:
	// 201 healthy zoom-user
	// zoom-access-token 200 <nil>
}
