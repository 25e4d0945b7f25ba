package kronsae

/*
#include "shim.h"
#cgo noescape go_encode
#cgo nocallback go_encode
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// Encoder turns activations into latents: a model, a workspace, and threads of its own. One goroutine at a time; make
// one for each that encodes.
type Encoder struct {
	handle  *handle
	cleanup runtime.Cleanup
	sae     *Sae // Kept from the collector, whose cleanup would stop this encoder.
}

// EncoderOptions says how an encoder works. The zero value is the default.
type EncoderOptions struct {
	// Threads of a call, the caller's included; 0: one. Results do not depend on it.
	Threads int
	// Path is how results are found.
	Path Path
}

// Path is how an encoder finds its results.
type Path int32

// The paths of an encoder.
const (
	PathAuto     Path = 0 // Whichever is faster, by a measured rule.
	PathPlain    Path = 1 // All rows of the encoder are computed exactly.
	PathScreened Path = 2 // An int8 copy tells which rows can matter, with proven bounds. Same results.
	PathFast     Path = 3 // As screened, with bounds that hold only very likely: now and then a latent may be missing.
)

// RequestAMX asks the system to let this process use AMX, the matrix tiles of recent Intel CPUs: encoders made afterwards
// encode large batches several times as fast. The permission is the whole process's, for good; Go's own signal stacks are
// large enough for it.
//
// Errors: [StatusUnsupported] if the CPU has none or the system refuses; everything works without. [*ABIError].
func RequestAMX() error {
	if abiError != nil {
		return abiError
	}
	var e *C.kronsae_error
	return failure("request AMX", C.kronsae_request_amx(&e), e)
}

// NewEncoder makes an encoder. options may be nil.
//
// Errors: [StatusOutOfMemory], [StatusUnsupported], [StatusInvalidArgument].
func (s *Sae) NewEncoder(options *EncoderOptions) (*Encoder, error) {
	const op = "new encoder"
	sae, err := s.use()
	if err != nil {
		return nil, err
	}
	defer s.done()
	settings := C.kronsae_encoder_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_encoder_options{}))}
	if options != nil {
		threads, err := number(op, "threads", options.Threads)
		if err != nil {
			return nil, err
		}
		settings.threads, settings.path = threads, C.kronsae_path(options.Path)
	}
	var encoder *C.kronsae_encoder
	var e *C.kronsae_error
	if status := C.kronsae_encoder_create(sae, &settings, &encoder, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	made := &Encoder{sae: s, handle: newHandle(unsafe.Pointer(encoder), func(p unsafe.Pointer) {
		C.kronsae_encoder_destroy((*C.kronsae_encoder)(p))
	})}
	made.cleanup = runtime.AddCleanup(made, (*handle).close, made.handle)
	return made, nil
}

func (e *Encoder) done() {
	e.handle.release()
	// Collected any earlier, the cleanup could close the handle before the call has begun.
	runtime.KeepAlive(e)
}

// Encode writes the latents of each row. The first call done, it allocates nothing. Results are a function of each row
// and the model alone. A row that is not finite has no latents and a flag, and is no error.
//
// Errors: [StatusInvalidArgument] if lengths do not fit, d_model is not the model's, or another call on this encoder is
// in progress; [StatusStopped] if the model was closed; [ErrClosed].
func (e *Encoder) Encode(activations Activations, latents *Latents) error {
	const op = "encode"
	if e == nil {
		return ErrClosed
	}
	pointer := e.handle.acquire()
	if pointer == nil {
		return ErrClosed
	}
	defer e.done()
	rows, err := activations.shape(op)
	if err != nil {
		return err
	}
	if err := latents.check(op); err != nil {
		return err
	}
	got := C.go_encode((*C.kronsae_encoder)(pointer), (*C.uchar)(activations.data), rows, C.size_t(latents.Rows()),
		C.size_t(latents.Capacity), words(latents.Counts), words(latents.Indices), floats(latents.Values),
		words(latents.Active), flagBytes(latents.Flags))
	if got.done.status != 0 {
		return failure(op, got.done.status, got.done.error)
	}
	latents.Skipped, latents.Truncated = int(got.skipped), int(got.truncated)
	return nil
}

// Close ends the encoder's threads and frees it, after a call in progress. It always returns nil, and may be called
// again.
func (e *Encoder) Close() error {
	if e != nil {
		e.cleanup.Stop()
		e.handle.close()
		runtime.KeepAlive(e)
	}
	return nil
}
