package kronsae

import (
	"math"
	"sync/atomic"
	"unsafe"
)

// handle owns one object of the library. Every call counts as a use while it lasts; the object is destroyed once, by
// whoever brings a closed handle to no uses: Close itself, or the last call that was in progress.
//
// It is separate from the type that users hold, so that a cleanup on that type can refer to it.
type handle struct {
	// Bit 0: closed. Above it: uses in progress. destroyed: the object is gone; calls that come too late move it up and
	// back by a few and never to 1.
	state   atomic.Int64
	pointer unsafe.Pointer
	destroy func(unsafe.Pointer)
}

const (
	closed    = 1
	oneUse    = 2
	destroyed = math.MinInt64/2 | closed
)

func newHandle(pointer unsafe.Pointer, destroy func(unsafe.Pointer)) *handle {
	return &handle{pointer: pointer, destroy: destroy}
}

// acquire begins a use and returns the object, or nil if the handle is closed. A nil handle is closed. After an object
// was returned, release must follow.
func (h *handle) acquire() unsafe.Pointer {
	if h == nil {
		return nil
	}
	if h.state.Add(oneUse)&closed != 0 {
		h.release()
		return nil
	}
	return h.pointer
}

func (h *handle) release() {
	if h.state.Add(-oneUse) == closed {
		h.finish()
	}
}

// close is what Close and the cleanup do. Only the first has an effect.
func (h *handle) close() {
	if h == nil {
		return
	}
	if h.state.Or(closed) == 0 {
		h.finish()
	}
}

// finish destroys the object if the handle is closed and unused, which another goroutine may have seen as well.
func (h *handle) finish() {
	if h.state.CompareAndSwap(closed, destroyed) {
		h.destroy(h.pointer)
	}
}
