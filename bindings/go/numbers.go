package kronsae

// #include "shim.h"
import "C"

import (
	"fmt"
	"math"
	"time"
)

func unknown(what string, number int32) string { return fmt.Sprintf("unknown %s %d", what, number) }

// number converts an option for C.
func number(op, what string, value int) (C.uint32_t, error) {
	if value < 0 || value > math.MaxUint32 {
		return 0, invalid(op, "%s is %d, expected 0 to %d", what, value, uint32(math.MaxUint32))
	}
	return C.uint32_t(value), nil
}

// size converts a length for C.
func size(op, what string, value int) (C.size_t, error) {
	if value < 0 {
		return 0, invalid(op, "%s is %d, expected at least 0", what, value)
	}
	return C.size_t(value), nil
}

// milliseconds rounds a wait up, so that a short one is not none; below 0 is none.
func milliseconds(wait time.Duration) C.uint32_t {
	switch ms := (max(wait, 0) + time.Millisecond - 1) / time.Millisecond; {
	case wait > time.Duration(math.MaxUint32)*time.Millisecond:
		return math.MaxUint32
	default:
		return C.uint32_t(ms)
	}
}
