//go:build !kronsae_pkgconfig

package kronsae

// #cgo LDFLAGS: -lkronsae
import "C"
