package kronsae

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"
)

// Status is what a call of the library came to. It is an error itself, the target for errors.Is. Later libraries may
// return statuses that have no constant here; their number is kept.
type Status int32

// The statuses of the library.
const (
	StatusOK              Status = 0  // Success.
	StatusInvalidArgument Status = 1  // An argument is wrong: nil, too short, out of range.
	StatusIO              Status = 2  // The operating system refused to open or read a file.
	StatusFormat          Status = 3  // A file is not what it claims to be.
	StatusUnsupported     Status = 4  // Valid, but this build, CPU or model cannot serve it.
	StatusOutOfMemory     Status = 5  // Memory could not be allocated.
	StatusStopped         Status = 6  // The object this one depends on was closed or stopped.
	StatusPoisoned        Status = 7  // An earlier internal error was caught in this object; it can only be closed.
	StatusForked          Status = 8  // The process was forked after the object was made.
	StatusInternal        Status = 9  // A bug inside the library was caught. Please report it.
	StatusTimeout         Status = 10 // It did not happen in the given time, and may be waited for again.
	StatusFull            Status = 11 // A bounded queue has no room at the moment; it may be tried again.
	StatusDevice          Status = 12 // A GPU or its driver failed.
)

// String is the library's short name of the status, "invalid argument" say; of one that the library does not know, its
// number.
func (s Status) String() string {
	name := C.GoString(C.kronsae_status_name(C.kronsae_status(s)))
	if name == "unknown status" {
		return fmt.Sprintf("unknown status %d", int32(s))
	}
	return name
}

// Error makes a status usable as an error.
func (s Status) Error() string { return "kronsae: " + s.String() }

// Error is a call that failed.
type Error struct {
	// Op is the operation: "encode", "open model".
	Op string
	// Status says what kind of failure it is.
	Status Status
	// Message is what was found and what was expected.
	Message string
}

// Error is the operation and the library's message.
func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("kronsae: %s: %s", e.Op, e.Status)
	}
	return fmt.Sprintf("kronsae: %s: %s", e.Op, e.Message)
}

// Unwrap is the status, so that errors.Is(err, StatusIO) works.
func (e *Error) Unwrap() error { return e.Status }

// Timeout tells whether waiting again may help.
func (e *Error) Timeout() bool { return e.Status == StatusTimeout }

// ErrClosed is returned by calls on a handle that was closed, is nil, or was never made.
var ErrClosed = errors.New("kronsae: use of a closed handle")

// failure makes a Go error of a failed call's status and error, which it frees. Nil for StatusOK.
func failure(op string, status C.kronsae_status, e *C.kronsae_error) error {
	if status == 0 {
		return nil
	}
	err := &Error{Op: op, Status: Status(status), Message: C.GoString(C.kronsae_error_message(e))}
	C.kronsae_error_destroy(e)
	return err
}

// invalid is an argument that this package refuses before the library sees it.
func invalid(op, format string, values ...any) error {
	return &Error{Op: op, Status: StatusInvalidArgument, Message: fmt.Sprintf(format, values...)}
}

// cString copies text for C; the caller frees it with freeString. Text with a NUL would end there, and is refused.
func cString(op, what, text string) (*C.char, error) {
	if at := strings.IndexByte(text, 0); at >= 0 {
		return nil, invalid(op, "%s has a NUL byte at %d", what, at)
	}
	return C.CString(text), nil
}

// optionalCString is cString, with nil for no text.
func optionalCString(op, what, text string) (*C.char, error) {
	if text == "" {
		return nil, nil
	}
	return cString(op, what, text)
}

func freeString(text *C.char) { C.free(unsafe.Pointer(text)) }

// Must is the value, where there was no error; otherwise it panics with the error. For programs that cannot go on without
// it, tests and examples.
func Must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
