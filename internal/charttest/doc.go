// Package charttest tests the Helm chart as its users meet it: rendered by Helm,
// installed into a real Kubernetes API server, and run, as far as that goes on a
// machine without a cluster. Its tests need tools that take minutes to build
// once, so they carry the build tag chart, and `make chart-test` runs them.
package charttest
