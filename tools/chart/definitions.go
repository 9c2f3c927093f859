//go:build tools

// Package chart keeps the modules whose files the tests of the chart read: the
// definitions of the optional objects, which a cluster may or may not have.
package chart

import (
	_ "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	_ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
