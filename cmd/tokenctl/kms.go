package main

import (
	// The key management services that may have wrapped the keyset.
	_ "tokenprovider/internal/keyset/awskms"
	_ "tokenprovider/internal/keyset/gcpkms"
	_ "tokenprovider/internal/keyset/vault"
)
