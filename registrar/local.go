package registrar

import (
	"context"
	"net"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"tokenprovider/internal/store"
)

// Local serves the calls that read users to this process alone, for operators when
// no registrar can be reached. It changes nothing: whatever else is called fails.
// The apps are those that have users.
func Local(grants *store.Store, apps map[string]int, log *zap.Logger) (*grpc.Server, *grpc.ClientConn, error) {
	known := map[string]App{}
	for name := range apps {
		known[name] = App{}
	}
	service := New(Config{Store: grants, Log: log, Apps: known})
	access := &Access{readOnly: true}
	server, _, err := NewServer(service, access)
	if err != nil {
		return nil, nil, err
	}
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	connection, err := grpc.NewClient("passthrough:local", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		server.Stop()
		return nil, nil, err
	}
	return server, connection, nil
}
