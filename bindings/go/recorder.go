package kronsae

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Recorder writes what the taps of a site take in into activation shards, until it is closed. Any number of goroutines
// may use one at once.
type Recorder struct {
	handle  *handle
	cleanup runtime.Cleanup
	monitor *Monitor // Kept from the collector, whose cleanup would end the recording.
}

// RecorderOptions says what is recorded. The zero value of all but Folder is the default.
type RecorderOptions struct {
	Folder       string // Made if it is missing. There is no default.
	DType        DType  // F32 or BF16; 0: BF16.
	TokenIDs     bool   // Write token ids: they are what users said.
	Text         bool   // Write text, where the monitor has it.
	Position0    bool   // Record tokens at position 0, too.
	ShardSeconds int
	ShardTokens  uint64
	MostBytes    uint64
	MostTokens   uint64
	Model, Hook  string // Written into the shards.
}

// Record starts to record, from the next batch on. One recording a site at a time.
//
// Errors: [StatusIO], [StatusInvalidArgument], [StatusOutOfMemory], [StatusStopped].
func (s *Site) Record(options RecorderOptions) (*Recorder, error) {
	const op = "record"
	monitor, err := s.use()
	if err != nil {
		return nil, err
	}
	defer s.monitor.done()
	c := C.kronsae_recorder_options{
		struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_recorder_options{})), dtype: C.kronsae_dtype(options.DType),
		shard_tokens: C.uint64_t(options.ShardTokens), most_bytes: C.uint64_t(options.MostBytes),
		most_tokens: C.uint64_t(options.MostTokens),
	}
	for _, flag := range []struct {
		on  bool
		bit C.uint32_t
	}{
		{options.TokenIDs, C.KRONSAE_RECORD_TOKEN_IDS}, {options.Text, C.KRONSAE_RECORD_TEXT},
		{options.Position0, C.KRONSAE_RECORD_POSITION_0},
	} {
		if flag.on {
			c.flags |= flag.bit
		}
	}
	if c.shard_seconds, err = number(op, "shard seconds", options.ShardSeconds); err != nil {
		return nil, err
	}
	for _, text := range []struct {
		what, from string
		to         **C.char
	}{{"the folder", options.Folder, &c.folder}, {"the model", options.Model, &c.model}, {"the hook", options.Hook, &c.hook}} {
		if *text.to, err = optionalCString(op, text.what, text.from); err != nil {
			return nil, err
		}
		defer freeString(*text.to)
	}
	var recorder *C.kronsae_recorder
	var e *C.kronsae_error
	if status := C.kronsae_recorder_start(monitor, C.uint32_t(s.number), &c, &recorder, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	made := &Recorder{monitor: s.monitor, handle: newHandle(unsafe.Pointer(recorder), func(p unsafe.Pointer) {
		C.kronsae_recorder_destroy((*C.kronsae_recorder)(p))
	})}
	made.cleanup = runtime.AddCleanup(made, (*handle).close, made.handle)
	return made, nil
}

// RecorderStatus is what a recording has done.
type RecorderStatus struct {
	Recording bool   // Otherwise the shards are closed.
	Written   uint64 // Tokens in finished shards.
	Failures  uint64 // Tokens it had to leave out.
}

// Status says how far the recording is.
func (r *Recorder) Status() (RecorderStatus, error) {
	if r == nil {
		return RecorderStatus{}, ErrClosed
	}
	pointer := r.handle.acquire()
	if pointer == nil {
		return RecorderStatus{}, ErrClosed
	}
	// Collected any earlier, the cleanup could end the recording before the call has begun.
	defer runtime.KeepAlive(r)
	defer r.handle.release()
	c := C.kronsae_recorder_status{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_recorder_status{}))}
	var e *C.kronsae_error
	if status := C.kronsae_recorder_get_status((*C.kronsae_recorder)(pointer), &c, &e); status != 0 {
		return RecorderStatus{}, failure("recorder status", status, e)
	}
	return RecorderStatus{c.recording != 0, uint64(c.written), uint64(c.failures)}, nil
}

// Close ends the recording and writes the last shard. It always returns nil, and may be called again.
func (r *Recorder) Close() error {
	if r != nil {
		r.cleanup.Stop()
		r.handle.close()
		runtime.KeepAlive(r)
	}
	return nil
}
