package kronsae

/*
#cgo LDFLAGS: -ldl
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include "shim.h"

// Which file a function of the library was loaded from, or NULL.
static const char *go_library_path(void) {
    Dl_info info;
    return dladdr((const void *)(uintptr_t)&kronsae_abi_version, &info) ? info.dli_fname : NULL;
}
// Not a macro, so that cgo sees one type for both.
static uint32_t go_header_abi(void) { return KRONSAE_ABI_VERSION; }
static uint32_t go_header_version(void) { return KRONSAE_VERSION; }
*/
import "C"

import "fmt"

// ABIError says that the loaded library has another binary interface than the header this package was built with.
type ABIError struct {
	// Found and Expected are ABI versions: the library's and the header's.
	Found, Expected uint32
	// Version is the library's own version, "0.1.0".
	Version string
	// Path is the file that the library was loaded from; empty if the system does not say.
	Path string
}

// Error says what was found where, and what to do.
func (e *ABIError) Error() string {
	return fmt.Sprintf("kronsae: %s has ABI version %d (it is kronsae %s), expected %d: install the library this program "+
		"was built for, or build the program anew", e.Path, e.Found, e.Version, e.Expected)
}

var abiError = checkABI()

func checkABI() error {
	found, expected := uint32(C.kronsae_abi_version()), uint32(C.go_header_abi())
	if found == expected {
		return nil
	}
	return &ABIError{Found: found, Expected: expected, Version: Version(), Path: LibraryPath()}
}

// Check tells whether the loaded library fits: nil, or an [*ABIError]. It is done once, when the program starts; every
// function that makes a handle returns the same error.
func Check() error { return abiError }

// Version is the version of the loaded library, "0.1.0".
func Version() string { return C.GoString(C.kronsae_version_string()) }

// VersionNumber is the version of the loaded library as 10000 * major + 100 * minor + patch.
func VersionNumber() uint32 { return uint32(C.kronsae_version_number()) }

// HeaderVersionNumber is the version of the header this package was built with, in the same form.
func HeaderVersionNumber() uint32 { return uint32(C.go_header_version()) }

// ABIVersion is the version of the loaded library's binary interface.
func ABIVersion() uint32 { return uint32(C.kronsae_abi_version()) }

// LibraryPath is the file that the library was loaded from; empty if the system does not say.
func LibraryPath() string { return C.GoString(C.go_library_path()) }
