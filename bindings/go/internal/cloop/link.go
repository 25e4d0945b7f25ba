//go:build !kronsae_pkgconfig

package cloop

// #cgo LDFLAGS: -lkronsae
import "C"
