package main

import (
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tokenprovider/internal/config"
	"tokenprovider/internal/reload"
	"tokenprovider/registrar"
)

// settings are the settings of the registrar.
type settings struct {
	config.Program
	GRPCAddr string `name:"grpc-addr" env:"GRPC_ADDR" default:":8443" help:"Where internal services call."`
	OpsAddr  string `env:"OPS_ADDR" default:":9090" help:"Where /healthz, /readyz and /metrics are. Never expose it."`

	config.Certificates
	GRPCPolicyFile string `name:"grpc-policy-file" env:"GRPC_POLICY_FILE" placeholder:"FILE" help:"Which clients may do what, in YAML. Without it, any client with a certificate may do all but GetAccessToken."`
	GRPCInsecure   bool   `name:"grpc-insecure" env:"GRPC_INSECURE" help:"Serve gRPC in plaintext, to anybody who can connect."`

	config.Storage
	config.Zoom
	config.Renewal
	config.Recall
	ReconcileInterval time.Duration `env:"RECONCILE_INTERVAL" default:"1h" help:"How long after one comparison with all that Recall has the next begins."`

	certificates *reload.Value[*registrar.Certificates]
	policy       *reload.Value[*registrar.Policy]
}

// Check implements [config.Checker].
func (c *settings) Check(fault func(setting, text string)) {
	c.Program.Check(fault)
	c.Storage.Check(fault)
	c.Renewal.Check(fault)
	c.Zoom.Check(fault)
	c.checkGRPC(fault)
	c.Recall.Check(fault)
	c.CheckApp(&c.Zoom, fault)
	if c.ReconcileInterval < time.Second {
		fault("RECONCILE_INTERVAL", "less than a second")
	}
}

// checkGRPC reads what clients are known by.
func (c *settings) checkGRPC(fault func(setting, text string)) {
	files := []struct{ setting, path, hint string }{
		{"GRPC_TLS_CERT_FILE", c.GRPCTLSCertFile, "the server's certificate in PEM"},
		{"GRPC_TLS_KEY_FILE", c.GRPCTLSKeyFile, "the key of the server's certificate in PEM"},
		{"GRPC_CLIENT_CA_FILE", c.GRPCClientCAFile, "the authorities that vouch for clients, in PEM"},
	}
	missing := false
	for _, file := range files {
		switch {
		case c.GRPCInsecure && file.path != "":
			fault(file.setting, "set besides GRPC_INSECURE: choose one")
		case !c.GRPCInsecure && file.path == "":
			fault(file.setting, "not set: "+file.hint+"; or set GRPC_INSECURE=true to serve plaintext")
			missing = true
		}
	}
	if c.GRPCInsecure && c.GRPCPolicyFile != "" {
		fault("GRPC_POLICY_FILE", "set besides GRPC_INSECURE, where nobody knows who calls: choose one")
	}
	if c.GRPCInsecure || missing {
		return
	}
	var err error
	c.certificates, err = reload.New(func(read reload.Read) (*registrar.Certificates, error) {
		return registrar.ReadCertificates(c.GRPCTLSCertFile, c.GRPCTLSKeyFile, c.GRPCClientCAFile, read)
	})
	if err != nil {
		fault("GRPC_TLS_CERT_FILE", "with GRPC_TLS_KEY_FILE and GRPC_CLIENT_CA_FILE: "+oneLine(err))
	}
	if c.GRPCPolicyFile == "" {
		return
	}
	c.policy, err = reload.New(func(read reload.Read) (*registrar.Policy, error) {
		content, err := read(c.GRPCPolicyFile)
		if err != nil {
			return nil, err
		}
		return registrar.ReadPolicy(content)
	})
	if err != nil {
		fault("GRPC_POLICY_FILE", oneLine(err))
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// transport is how clients connect.
func (c *settings) transport() grpc.ServerOption {
	if c.GRPCInsecure {
		return grpc.Creds(insecure.NewCredentials())
	}
	return grpc.Creds(registrar.MutualTLS(c.certificates))
}

// access decides who may call what.
func (c *settings) access() *registrar.Access {
	return &registrar.Access{Policy: c.policy, Plaintext: c.GRPCInsecure}
}

// tellAccess says in the log who may call.
func (c *settings) tellAccess(log *zap.Logger) {
	switch {
	case c.GRPCInsecure:
		log.Warn("gRPC is served in plaintext, to anybody who can connect (GRPC_INSECURE)")
	case c.policy == nil:
		log.Warn("any client with a certificate may do all but GetAccessToken: set GRPC_POLICY_FILE")
	}
}
