package kronsae

/*
#include "shim.h"
#cgo noescape go_submit
#cgo nocallback go_submit
#cgo noescape go_tap_encode
#cgo nocallback go_tap_encode
#cgo noescape go_end_request
#cgo nocallback go_end_request
#cgo noescape go_rewind
#cgo nocallback go_rewind
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// Tap is where a serving goroutine hands activations to a monitor. One goroutine at a time; make one for each.
type Tap struct {
	handle  *handle
	cleanup runtime.Cleanup
	monitor *Monitor // Kept from the collector, whose cleanup would stop this tap.
}

// Sampling is which tokens of a tap are encoded.
type Sampling int32

// Ways to sample.
const (
	SampleEvery      Sampling = 1 // Every token.
	SampleEveryNth   Sampling = 2 // Tokens whose position is a multiple of Nth.
	SampleLastPrompt Sampling = 3 // Tokens with TokenLastPrompt.
)

// TapOptions says how a tap works. The zero value is the default.
type TapOptions struct {
	Sampling Sampling
	Nth      int   // With SampleEveryNth.
	DType    DType // The widest that will be submitted; 0: F32, so any.
	Capacity int   // Tokens the queue has room for; 0: 1024.
	Controls int   // Ends of requests and rewinds it has room for besides; 0: 1024.
}

// TokenFlags says what kind of token one is.
type TokenFlags uint32

// Bits of a token's flags.
const (
	TokenPrompt     TokenFlags = 1 // It was read, not generated.
	TokenLastPrompt TokenFlags = 2 // The last of a prompt.
)

// TokenTag says whose token a row of activations is. Its layout is that of kronsae_token_tag.
type TokenTag struct {
	Request  uint64
	Position int32 // In the request's sequence, from 0.
	Token    int32 // In the LLM's vocabulary; -1 if unknown.
	Flags    TokenFlags
	_        uint32
}

// Fails to compile if the layouts of what is passed in place differ in size.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(TokenTag{})-unsafe.Sizeof(C.kronsae_token_tag{})]
	_ = [1]struct{}{}[unsafe.Offsetof(TokenTag{}.Flags)-unsafe.Offsetof(C.kronsae_token_tag{}.flags)]
	_ = [1]struct{}{}[unsafe.Sizeof(SteerTerm{})-unsafe.Sizeof(C.kronsae_steer_term{})]
)

// NewTap makes a tap. options may be nil.
//
// Errors: [StatusInvalidArgument], [StatusOutOfMemory], [StatusStopped].
func (s *Site) NewTap(options *TapOptions) (*Tap, error) {
	const op = "new tap"
	monitor, err := s.use()
	if err != nil {
		return nil, err
	}
	defer s.monitor.done()
	c := C.kronsae_tap_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_tap_options{}))}
	if o := options; o != nil {
		c.sampling, c.dtype = C.kronsae_sampling(o.Sampling), C.kronsae_dtype(o.DType)
		if c.nth, err = number(op, "nth", o.Nth); err != nil {
			return nil, err
		}
		if c.capacity, err = size(op, "the capacity", o.Capacity); err != nil {
			return nil, err
		}
		if c.controls, err = size(op, "controls", o.Controls); err != nil {
			return nil, err
		}
	}
	var tap *C.kronsae_tap
	var e *C.kronsae_error
	if status := C.kronsae_tap_create(monitor, C.uint32_t(s.number), &c, &tap, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	made := &Tap{monitor: s.monitor, handle: newHandle(unsafe.Pointer(tap), func(p unsafe.Pointer) {
		C.kronsae_tap_destroy((*C.kronsae_tap)(p))
	})}
	made.cleanup = runtime.AddCleanup(made, (*handle).close, made.handle)
	return made, nil
}

// use begins a call; done must follow if there was no error.
func (t *Tap) use() (*C.kronsae_tap, error) {
	if t == nil {
		return nil, ErrClosed
	}
	pointer := t.handle.acquire()
	if pointer == nil {
		return nil, ErrClosed
	}
	return (*C.kronsae_tap)(pointer), nil
}

func (t *Tap) done() {
	t.handle.release()
	// Collected any earlier, the cleanup could close the handle before the call has begun.
	runtime.KeepAlive(t)
}

// batch checks activations and tags together.
func batch(op string, activations Activations, tags []TokenTag) (C.go_rows, *C.kronsae_token_tag, error) {
	rows, err := activations.shape(op)
	if err == nil && len(tags) != int(rows.rows) {
		err = invalid(op, "%d tags for %d rows of activations: expected one for each", len(tags), int(rows.rows))
	}
	return rows, (*C.kronsae_token_tag)(unsafe.Pointer(unsafe.SliceData(tags))), err
}

// Submit copies a batch into the tap's queue and returns how many rows were queued; the others are counted as sampled
// out or, where the queue is full, as dropped. It waits for nothing and allocates nothing.
//
// Errors: [StatusInvalidArgument], [StatusStopped] if the monitor was stopped or closed, [StatusPoisoned]. No row is
// queued then.
func (t *Tap) Submit(activations Activations, tags []TokenTag) (int, error) {
	const op = "submit"
	tap, err := t.use()
	if err != nil {
		return 0, err
	}
	defer t.done()
	rows, first, err := batch(op, activations, tags)
	if err != nil {
		return 0, err
	}
	got := C.go_submit(tap, (*C.uchar)(activations.data), rows, first)
	return int(got.accepted), failure(op, got.done.status, got.done.error)
}

// Encode encodes a batch now, as [Encoder.Encode] does, and hands it to the monitor's statistics and rules as Submit does.
// It returns how many rows were queued for those; all of them are encoded.
//
// Errors: as of both; [StatusUnsupported] at a site without a model.
func (t *Tap) Encode(activations Activations, tags []TokenTag, latents *Latents) (int, error) {
	const op = "tap encode"
	tap, err := t.use()
	if err != nil {
		return 0, err
	}
	defer t.done()
	rows, first, err := batch(op, activations, tags)
	if err != nil {
		return 0, err
	}
	if err := latents.check(op); err != nil {
		return 0, err
	}
	got := C.go_tap_encode(tap, (*C.uchar)(activations.data), rows, first, C.size_t(latents.Rows()), C.size_t(latents.Capacity),
		words(latents.Counts), words(latents.Indices), floats(latents.Values), words(latents.Active), flagBytes(latents.Flags))
	if done := got.encoded.done; done.status != 0 {
		return 0, failure(op, done.status, done.error)
	}
	latents.Skipped, latents.Truncated = int(got.encoded.skipped), int(got.encoded.truncated)
	return int(got.accepted), nil
}

// EndRequest says that a request is over.
//
// Errors: [StatusFull], and nothing was done; [StatusStopped]; [StatusPoisoned].
func (t *Tap) EndRequest(request uint64) error {
	tap, err := t.use()
	if err != nil {
		return err
	}
	defer t.done()
	done := C.go_end_request(tap, C.uint64_t(request))
	return failure("end request", done.status, done.error)
}

// Rewind takes back the tokens of a request from a position on; a match that rests on them is retracted by an event.
// Errors as of [Tap.EndRequest].
func (t *Tap) Rewind(request uint64, position int32) error {
	tap, err := t.use()
	if err != nil {
		return err
	}
	defer t.done()
	done := C.go_rewind(tap, C.uint64_t(request), C.int32_t(position))
	return failure("rewind", done.status, done.error)
}

// Close frees the tap; what it took in is still encoded. It always returns nil, and may be called again.
func (t *Tap) Close() error {
	if t != nil {
		t.cleanup.Stop()
		t.handle.close()
		runtime.KeepAlive(t)
	}
	return nil
}
