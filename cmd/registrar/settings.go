package main

import (
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/reload"
	"tokenprovider/registrar"
)

// settings are the settings of the registrar.
type settings struct {
	config.Program
	GRPCAddr string `name:"grpc-addr" env:"GRPC_ADDR" default:":8443" help:"Listen address of the gRPC API, for internal services."`
	OpsAddr  string `env:"OPS_ADDR" default:":9090" help:"Listen address of /healthz, /readyz and /metrics. Never expose it."`

	config.Certificates
	GRPCPolicyFile string `name:"grpc-policy-file" env:"GRPC_POLICY_FILE" placeholder:"FILE" help:"YAML file with the rights of each client. Empty: any client with a certificate may call all but GetAccessToken."`
	GRPCInsecure   bool   `name:"grpc-insecure" env:"GRPC_INSECURE" help:"Plaintext gRPC, open to every client that can connect."`

	app.Storage
	config.Zoom
	config.Renewal
	config.Recall
	ReconcileInterval time.Duration `env:"RECONCILE_INTERVAL" default:"1h" help:"Interval between reconciliations with Recall."`

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
		fault("RECONCILE_INTERVAL", "must be at least 1s")
	}
}

// checkGRPC reads the certificates and the policy.
func (c *settings) checkGRPC(fault func(setting, text string)) {
	files := []struct{ setting, path, hint string }{
		{"GRPC_TLS_CERT_FILE", c.GRPCTLSCertFile, "the server's certificate in PEM"},
		{"GRPC_TLS_KEY_FILE", c.GRPCTLSKeyFile, "the key of the server's certificate in PEM"},
		{"GRPC_CLIENT_CA_FILE", c.GRPCClientCAFile, "the certificate authorities of the clients, in PEM"},
	}
	missing := false
	for _, file := range files {
		switch {
		case c.GRPCInsecure && file.path != "":
			fault(file.setting, "is mutually exclusive with GRPC_INSECURE")
		case !c.GRPCInsecure && file.path == "":
			fault(file.setting, "is required: "+file.hint+"; or set GRPC_INSECURE=true to serve plaintext")
			missing = true
		}
	}
	if c.GRPCInsecure && c.GRPCPolicyFile != "" {
		fault("GRPC_POLICY_FILE", "is mutually exclusive with GRPC_INSECURE, which does not identify clients")
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

// transport returns the transport of the gRPC server: mutual TLS or plaintext.
func (c *settings) transport() grpc.ServerOption {
	if c.GRPCInsecure {
		return grpc.Creds(insecure.NewCredentials())
	}
	return grpc.Creds(registrar.MutualTLS(c.certificates))
}

// access returns the authorization of gRPC calls.
func (c *settings) access() *registrar.Access {
	return &registrar.Access{Policy: c.policy, Plaintext: c.GRPCInsecure}
}

// logAccess warns of missing authorization.
func (c *settings) logAccess(log *zap.Logger) {
	switch {
	case c.GRPCInsecure:
		log.Warn("GRPC_INSECURE set; every client that can connect may call, in plaintext")
	case c.policy == nil:
		log.Warn("GRPC_POLICY_FILE not set; any client with a certificate may call all but GetAccessToken")
	}
}
