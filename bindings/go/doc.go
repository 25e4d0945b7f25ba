// Package kronsae turns a language model's activations into sparse latents, on the CPU, and monitors which latents fire
// while a model serves. It binds libkronsae over its C interface.
//
// # Finding the library
//
// The package is linked with -lkronsae. Where header and library are not in the system's folders, either say so in
// CGO_CFLAGS (-I) and CGO_LDFLAGS (-L), or build with the tag kronsae_pkgconfig, which asks pkg-config for kronsae. At
// start the system's loader finds libkronsae.so.0, by LD_LIBRARY_PATH or an rpath, and names it if it does not. A
// library of another ABI version is refused with an [*ABIError] by every function that makes something; [Check] asks
// beforehand.
//
// # Errors
//
// A failed call returns an [*Error]: the operation, the library's [Status] and its message. Statuses are errors
// themselves, so errors.Is(err, kronsae.StatusFormat) tells them apart; one this package does not know is kept as its
// number. A call on a closed or nil handle returns [ErrClosed]. Nothing panics on bad input.
//
// # Lifetimes
//
// Every handle has a Close, which may be called twice, and during calls of other goroutines: those end normally, and what
// the library holds is freed with the last of them. A handle that is not closed is freed after the collector has found
// it, which does not know how large a model is: close what is large. An [Encoder] keeps its [Sae] from being collected, a
// [Tap] and a [Recorder] their [Monitor]; closing those explicitly stops their dependents with [StatusStopped].
//
// # Threads
//
// A [Sae], a [Monitor], a [Site] and a [Recorder] may be used by any number of goroutines at once. An [Encoder] and a
// [Tap] belong to one goroutine at a time; a call that overlaps another is refused with [StatusInvalidArgument].
//
// # Memory
//
// Activations and latents are read and written where they are, in slices of the caller; nothing is copied, and a call in
// steady state allocates nothing. The library never calls back into Go.
package kronsae
