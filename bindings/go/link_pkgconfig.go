//go:build kronsae_pkgconfig

package kronsae

// #cgo pkg-config: kronsae
import "C"
