//go:build kronsae_pkgconfig

package cloop

// #cgo pkg-config: kronsae
import "C"
