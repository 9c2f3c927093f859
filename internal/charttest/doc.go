// Package charttest tests the Helm chart: rendered by Helm, installed into a real
// Kubernetes API server, and run as processes on a machine without a cluster. Its
// tools take minutes to build, so the tests have the build tag chart; `make
// chart-test` runs them.
package charttest
