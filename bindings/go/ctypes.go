package kronsae

// #include "shim.h"
import "C"

import "unsafe"

// Names of C's types for tests, where cgo cannot be used.
type pointer = unsafe.Pointer

func statusToC(s Status) C.kronsae_status { return C.kronsae_status(s) }
