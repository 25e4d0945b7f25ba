package kronsae

// #include "shim.h"
import "C"

import (
	"iter"
	"unsafe"
)

// DType is an element type.
type DType int32

// Element types, little-endian.
const (
	F32  DType = 1 // IEEE 754 binary32, a float32.
	F16  DType = 2 // IEEE 754 binary16, in a uint16.
	BF16 DType = 3 // The upper half of a binary32, in a uint16.
)

func (d DType) String() string {
	switch d {
	case F32:
		return "f32"
	case F16:
		return "f16"
	case BF16:
		return "bf16"
	}
	return unknown("dtype", int32(d))
}

// Size is the bytes of an element; 0 for an unknown type.
func (d DType) Size() int {
	switch d {
	case F32:
		return 4
	case F16, BF16:
		return 2
	}
	return 0
}

// Activations is a batch of activation vectors, [rows, d_model], in a slice of the caller that is used where it is. Make
// one with [Float32], [Float16] or [BFloat16]. During a call nobody may write to the slice.
type Activations struct {
	dtype  DType
	data   *byte
	length int // elements
	dModel int
	stride int // elements; 0: contiguous
}

// Float32 are rows of dModel elements, one after the other.
func Float32(data []float32, dModel int) Activations {
	return Activations{F32, (*byte)(unsafe.Pointer(unsafe.SliceData(data))), len(data), dModel, 0}
}

// Float16 are rows of dModel binary16 elements, one after the other.
func Float16(data []uint16, dModel int) Activations {
	return Activations{F16, (*byte)(unsafe.Pointer(unsafe.SliceData(data))), len(data), dModel, 0}
}

// BFloat16 are rows of dModel bfloat16 elements, one after the other.
func BFloat16(data []uint16, dModel int) Activations {
	return Activations{BF16, (*byte)(unsafe.Pointer(unsafe.SliceData(data))), len(data), dModel, 0}
}

// WithStride are the same elements with rows that begin stride elements apart, at least dModel; what is between rows is
// not looked at, and the last row may end the slice.
func (a Activations) WithStride(stride int) Activations {
	a.stride = stride
	return a
}

// Rows is how many rows there are; 0 if lengths do not fit, which a call then refuses.
func (a Activations) Rows() int {
	rows, err := a.shape("")
	if err != nil {
		return 0
	}
	return int(rows.rows)
}

// shape checks lengths, which C cannot see.
func (a Activations) shape(op string) (C.go_rows, error) {
	if a.dtype.Size() == 0 {
		return C.go_rows{}, invalid(op, "activations have no element type; make them with Float32, Float16 or BFloat16")
	}
	if a.dModel <= 0 {
		return C.go_rows{}, invalid(op, "activations have d_model %d, expected at least 1", a.dModel)
	}
	stride := a.dModel
	if a.stride != 0 {
		stride = a.stride
	}
	if stride < a.dModel || stride > int(^uint(0)>>1)/4 {
		return C.go_rows{}, invalid(op, "activations have a stride of %d elements, expected at least d_model, %d", stride, a.dModel)
	}
	rows := 0
	if a.length > 0 {
		rows = (a.length-1)/stride + 1
		last := a.length - (rows-1)*stride
		if last < a.dModel || a.stride == 0 && last != a.dModel {
			return C.go_rows{}, invalid(op, "activations have %d elements, which are no whole rows of d_model %d at stride %d",
				a.length, a.dModel, stride)
		}
	}
	return C.go_rows{C.kronsae_dtype(a.dtype), C.size_t(rows), C.size_t(a.dModel), C.size_t(stride * a.dtype.Size())}, nil
}

// RowFlags says what is special about a row of latents.
type RowFlags uint8

// Bits of a row's flags.
const (
	RowNotFinite RowFlags = 1 // A pre-activation or a product was not finite; the row has no latents.
	RowTruncated RowFlags = 2 // More latents were active than there is room for; the strongest were kept.
)

// Latents are the sparse latents of a batch, in slices that are written where they are. [NewLatents] makes them; they
// can be used again for any batch of at most as many rows.
type Latents struct {
	// Capacity is the entries a row has room for.
	Capacity int
	// Counts [rows] is how many entries of each row were written.
	Counts []uint32
	// Indices [rows * Capacity] are latents, strongest first; entries past a row's count stay untouched.
	Indices []uint32
	// Values [rows * Capacity] are the latents' values, in the same places.
	Values []float32
	// Active [rows], or nil: how many latents were active before any cut.
	Active []uint32
	// Flags [rows], or nil.
	Flags []RowFlags
	// Skipped and Truncated count the rows of the last call with RowNotFinite and RowTruncated.
	Skipped, Truncated int
}

// NewLatents makes room for rows of capacity entries, with Active and Flags. Numbers below 0 count as 0.
func NewLatents(rows, capacity int) *Latents {
	rows, capacity = max(rows, 0), max(capacity, 0)
	return &Latents{
		Capacity: capacity,
		Counts:   make([]uint32, rows),
		Indices:  make([]uint32, rows*capacity),
		Values:   make([]float32, rows*capacity),
		Active:   make([]uint32, rows),
		Flags:    make([]RowFlags, rows),
	}
}

// Rows is how many rows there is room for.
func (l *Latents) Rows() int { return len(l.Counts) }

// Row is what was written of a row: indices and values, strongest first, in place. It panics like an index that is out of
// range.
func (l *Latents) Row(row int) ([]uint32, []float32) {
	from := row * l.Capacity
	to := from + int(l.Counts[row])
	return l.Indices[from:to], l.Values[from:to]
}

// All iterates over a row's latents and their values, strongest first.
func (l *Latents) All(row int) iter.Seq2[uint32, float32] {
	return func(yield func(uint32, float32) bool) {
		indices, values := l.Row(row)
		for i, index := range indices {
			if !yield(index, values[i]) {
				return
			}
		}
	}
}

// check compares the lengths of the slices with rows and capacity.
func (l *Latents) check(op string) error {
	if l == nil {
		return invalid(op, "latents are nil")
	}
	rows, capacity := len(l.Counts), l.Capacity
	if capacity < 0 {
		return invalid(op, "latents have a capacity of %d", capacity)
	}
	// Divided, since the product could overflow.
	if rows > 0 && (capacity > len(l.Indices)/rows || capacity > len(l.Values)/rows) {
		return invalid(op, "latents of %d rows of capacity %d have %d indices and %d values, which are too few",
			rows, capacity, len(l.Indices), len(l.Values))
	}
	if l.Active != nil && len(l.Active) < rows || l.Flags != nil && len(l.Flags) < rows {
		return invalid(op, "latents have %d rows, but %d active and %d flags: expected as many, or nil",
			rows, len(l.Active), len(l.Flags))
	}
	return nil
}

func words(slice []uint32) *C.uint32_t { return (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(slice))) }

func floats(slice []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(slice))) }

func flagBytes(slice []RowFlags) *C.uint8_t {
	return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(slice)))
}
