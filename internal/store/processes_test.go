package store_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"tokenprovider/internal/store"
)

func testRunningProcessesAreListed(f *fixture) {
	processes := func() []store.Process {
		all, err := f.Processes(f.t.Context())
		if err != nil {
			f.t.Fatal(err)
		}
		return all
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.RunHeartbeat(ctx, "tokenserver", "v1.2 go1.26")
	}()
	var all []store.Process
	for end := time.Now().Add(10 * time.Second); len(all) == 0 && time.Now().Before(end); all = processes() {
		time.Sleep(time.Millisecond)
	}
	if len(all) != 1 || all[0].Program != "tokenserver" || all[0].Version != "v1.2 go1.26" ||
		!strings.HasSuffix(all[0].Name, "/"+strconv.Itoa(os.Getpid())) || time.Since(all[0].LastHeartbeat).Abs() > 10*time.Second {
		f.t.Errorf("listed: %+v", all)
	}
	cancel()
	<-ended
	if all := processes(); len(all) != 0 {
		f.t.Errorf("listed after their end: %+v", all)
	}
}
