package kronsae

/*
#include "shim.h"
#cgo noescape go_sae_info
#cgo nocallback go_sae_info
#cgo noescape go_decode
#cgo nocallback go_decode
#cgo noescape go_steer
#cgo nocallback go_steer
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// Sae is a trained sparse autoencoder. Any number of goroutines may use one at once.
type Sae struct {
	handle  *handle
	cleanup runtime.Cleanup
}

// OpenOptions says how a model is opened. The zero value is the default.
type OpenOptions struct {
	// EncoderOnly leaves the decoder in the file: saves its memory where nothing is decoded or steered.
	EncoderOnly bool
}

func (o *OpenOptions) c() C.kronsae_sae_options {
	options := C.kronsae_sae_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_sae_options{}))}
	if o != nil && o.EncoderOnly {
		options.encoder_only = 1
	}
	return options
}

// Open reads a model file into memory and validates it. options may be nil.
//
// Errors: [StatusIO] if it cannot be read, [StatusFormat] if it is no valid model, [StatusOutOfMemory], [*ABIError].
func Open(path string, options *OpenOptions) (*Sae, error) {
	const op = "open model"
	if abiError != nil {
		return nil, abiError
	}
	name, err := cString(op, "the path", path)
	if err != nil {
		return nil, err
	}
	defer freeString(name)
	var sae *C.kronsae_sae
	var e *C.kronsae_error
	settings := options.c()
	status := C.kronsae_sae_open(name, &settings, &sae, &e)
	return newSae(sae, failure(op, status, e))
}

// OpenBytes opens a model file that is held in memory; the bytes are copied. Errors as of [Open], without [StatusIO].
func OpenBytes(data []byte, options *OpenOptions) (*Sae, error) {
	if abiError != nil {
		return nil, abiError
	}
	var sae *C.kronsae_sae
	var e *C.kronsae_error
	settings := options.c()
	status := C.kronsae_sae_open_bytes(unsafe.Pointer(unsafe.SliceData(data)), C.size_t(len(data)), &settings, &sae, &e)
	return newSae(sae, failure("open model", status, e))
}

func newSae(pointer *C.kronsae_sae, err error) (*Sae, error) {
	if err != nil {
		return nil, err
	}
	s := &Sae{handle: newHandle(unsafe.Pointer(pointer), func(p unsafe.Pointer) { C.kronsae_sae_destroy((*C.kronsae_sae)(p)) })}
	s.cleanup = runtime.AddCleanup(s, (*handle).close, s.handle)
	return s, nil
}

// use begins a call; done must follow if there was no error.
func (s *Sae) use() (*C.kronsae_sae, error) {
	if s == nil {
		return nil, ErrClosed
	}
	pointer := s.handle.acquire()
	if pointer == nil {
		return nil, ErrClosed
	}
	return (*C.kronsae_sae)(pointer), nil
}

func (s *Sae) done() {
	s.handle.release()
	// Collected any earlier, the cleanup could close the handle before the call has begun.
	runtime.KeepAlive(s)
}

// Close frees the model. Calls in progress end normally; encoders made from it return [StatusStopped] from then on. It
// always returns nil, and may be called again.
func (s *Sae) Close() error {
	if s != nil {
		s.cleanup.Stop()
		s.handle.close()
		runtime.KeepAlive(s)
	}
	return nil
}

// EncoderKind is how pre-activations become latents.
type EncoderKind int32

// Kinds of encoders.
const (
	EncoderKron  EncoderKind = 1 // Heads of base and extension rows.
	EncoderDense EncoderKind = 2 // One row a latent.
)

func (k EncoderKind) String() string {
	switch k {
	case EncoderKron:
		return "kron"
	case EncoderDense:
		return "dense"
	}
	return unknown("encoder", int32(k))
}

// SelectionKind is which latents of a token are reported.
type SelectionKind int32

// Kinds of selection.
const (
	SelectionTopK      SelectionKind = 1 // The K strongest positive latents.
	SelectionThreshold SelectionKind = 2 // Every latent above a threshold; of too many, the strongest.
)

func (k SelectionKind) String() string {
	switch k {
	case SelectionTopK:
		return "topk"
	case SelectionThreshold:
		return "threshold"
	}
	return unknown("selection", int32(k))
}

// SaeInfo is what a model is. Fields are those of kronsae_sae_info.
type SaeInfo struct {
	Encoder             EncoderKind
	Selection           SelectionKind
	Weights             DType // Of the encoder's weights in memory.
	HasDecoder          bool  // It can decode and steer.
	HasCalibration      bool
	HasLatentThresholds bool
	CalibrationLevels   int
	Theta               float32
	OutputScale         float32
	DModel              int // Elements of an activation vector.
	Latents             int // F, the number of latents.
	EncoderRows         int
	Heads               int // Dense: 0, as the next two.
	Base                int
	Extension           int
	K                   int // TopK; threshold: 0.
	MaxLatents          int // Threshold; TopK: 0.
	Capacity            int // The capacity of Latents that never cuts anything.
}

// Info describes the model.
func (s *Sae) Info() (SaeInfo, error) {
	sae, err := s.use()
	if err != nil {
		return SaeInfo{}, err
	}
	defer s.done()
	got := C.go_sae_info(sae)
	if got.done.status != 0 {
		return SaeInfo{}, failure("info", got.done.status, got.done.error)
	}
	i := &got.info
	return SaeInfo{
		Encoder:             EncoderKind(i.encoder_kind),
		Selection:           SelectionKind(i.selection_kind),
		Weights:             DType(i.weights_dtype),
		HasDecoder:          i.has_decoder != 0,
		HasCalibration:      i.has_calibration != 0,
		HasLatentThresholds: i.has_latent_thresholds != 0,
		CalibrationLevels:   int(i.calibration_levels),
		Theta:               float32(i.theta),
		OutputScale:         float32(i.output_scale),
		DModel:              int(i.d_model),
		Latents:             int(i.latents),
		EncoderRows:         int(i.encoder_rows),
		Heads:               int(i.heads),
		Base:                int(i.base),
		Extension:           int(i.extension),
		K:                   int(i.k),
		MaxLatents:          int(i.max_latents),
		Capacity:            int(i.capacity),
	}, nil
}

// NewLatents makes room for the latents of so many rows that never cuts any.
func (s *Sae) NewLatents(rows int) (*Latents, error) {
	info, err := s.Info()
	if err != nil {
		return nil, err
	}
	return NewLatents(rows, info.Capacity), nil
}

// Config is the model's config, a JSON object.
func (s *Sae) Config() (string, error) {
	sae, err := s.use()
	if err != nil {
		return "", err
	}
	defer s.done()
	var text *C.char
	var e *C.kronsae_error
	if status := C.kronsae_sae_config_json(sae, &text, &e); status != 0 {
		return "", failure("config", status, e)
	}
	return C.GoString(text), nil
}

// Source tells where the training's activations came from: key is "model", "hook" or "layer". false if the file does not
// say.
func (s *Sae) Source(key string) (string, bool, error) {
	const op = "source"
	sae, err := s.use()
	if err != nil {
		return "", false, err
	}
	defer s.done()
	name, err := cString(op, "the key", key)
	if err != nil {
		return "", false, err
	}
	defer freeString(name)
	var text *C.char
	var e *C.kronsae_error
	if status := C.kronsae_sae_source(sae, name, &text, &e); status != 0 {
		return "", false, failure(op, status, e)
	}
	return C.GoString(text), text != nil, nil
}

// Decode reconstructs activations in raw units from latents: out is [rows, d_model], of at most as many rows as the
// latents have. Allocates nothing.
//
// Errors: [StatusInvalidArgument], also if out is no whole number of rows; [StatusUnsupported] if the model was opened
// encoder-only. Nothing is written then.
func (s *Sae) Decode(latents *Latents, out []float32) error {
	const op = "decode"
	sae, err := s.use()
	if err != nil {
		return err
	}
	defer s.done()
	if err := latents.check(op); err != nil {
		return err
	}
	got := C.go_sae_info(sae)
	if got.done.status != 0 {
		return failure(op, got.done.status, got.done.error)
	}
	dModel := int(got.info.d_model)
	if len(out)%dModel != 0 {
		return invalid(op, "the output has %d elements, which are no whole rows of d_model %d", len(out), dModel)
	}
	done := C.go_decode(sae, C.size_t(latents.Rows()), C.size_t(latents.Capacity), words(latents.Counts), words(latents.Indices),
		floats(latents.Values), floats(out), C.size_t(len(out)/dModel), C.size_t(dModel))
	return failure(op, done.status, done.error)
}

// SteerTerm is a latent to add to activations, and how much of it in units of latent values.
type SteerTerm struct {
	Latent      uint32
	Coefficient float32
}

// Steer adds multiples of latents' decoder rows to activations, in place, the same to each row.
//
// Errors: [StatusInvalidArgument], also for a latent that there is not; [StatusUnsupported] if the model was opened
// encoder-only. Nothing is changed then.
func (s *Sae) Steer(activations Activations, terms []SteerTerm) error {
	const op = "steer"
	sae, err := s.use()
	if err != nil {
		return err
	}
	defer s.done()
	rows, err := activations.shape(op)
	if err != nil {
		return err
	}
	done := C.go_steer(sae, (*C.uchar)(activations.data), rows,
		(*C.kronsae_steer_term)(unsafe.Pointer(unsafe.SliceData(terms))), C.size_t(len(terms)))
	return failure(op, done.status, done.error)
}
