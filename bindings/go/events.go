package kronsae

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"iter"
	"time"
	"unsafe"
)

// EventKind is what an event says.
type EventKind int32

// Kinds of events.
const (
	EventMatched   EventKind = 1 // A rule matched.
	EventRetracted EventKind = 2 // Tokens that an earlier match rests on were taken back.
)

func (k EventKind) String() string {
	switch k {
	case EventMatched:
		return "matched"
	case EventRetracted:
		return "retracted"
	}
	return unknown("event", int32(k))
}

// Severity is how much a match matters, as the rule's author says.
type Severity int32

// Severities.
const (
	SeverityInfo     Severity = 1
	SeverityWarning  Severity = 2
	SeverityCritical Severity = 3
)

func (s Severity) String() string {
	switch s {
	case SeverityInfo:
		return "info"
	case SeverityWarning:
		return "warning"
	case SeverityCritical:
		return "critical"
	}
	return unknown("severity", int32(s))
}

// EventLatent is a latent of the token that completed a match; Value is 0 if it is not active.
type EventLatent struct {
	Latent uint32
	Value  float32
}

// Event is a match of a rule, or its retraction.
type Event struct {
	Kind     EventKind
	Severity Severity
	Gap      bool // Tokens of the rule's window were missing.
	Position int32
	Token    int32  // Its id, or -1.
	ID       uint64 // Ascending from 1 without gaps: a missing number is a lost event.
	Time     time.Time
	Request  uint64
	Retracts uint64 // Of a retraction: the id of the event taken back.
	Site     string
	Model    string // The first 16 hexadecimal digits of the file's SHA-256.
	Rule     string
	Latents  []EventLatent
}

// eventBatch and pollWait are how many events are taken at a time, and how long a poll for Events waits: as long as
// breaking off may take.
const (
	eventBatch = 256
	pollWait   = 50 * time.Millisecond
)

// Poll takes the oldest events, at most most, and waits up to wait for the first. None is no error.
//
// Errors: [StatusStopped] if the monitor was stopped and no event is left; [StatusInvalidArgument] if most is below 1.
func (m *Monitor) Poll(most int, wait time.Duration) ([]Event, error) {
	const op = "poll events"
	monitor, err := m.use()
	if err != nil {
		return nil, err
	}
	defer m.done()
	if most < 1 {
		return nil, invalid(op, "at most %d events, expected at least 1", most)
	}
	if events := m.takePending(most); len(events) > 0 {
		return events, nil
	}
	var batch *C.kronsae_event_batch
	var e *C.kronsae_error
	if status := C.kronsae_monitor_poll_events(monitor, C.size_t(most), milliseconds(wait), &batch, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	defer C.kronsae_event_batch_destroy(batch)
	events := make([]Event, C.kronsae_event_batch_count(batch))
	for i := range events {
		c := C.kronsae_event{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_event{}))}
		if status := C.kronsae_event_batch_get(batch, C.size_t(i), &c, &e); status != 0 {
			return nil, failure(op, status, e)
		}
		events[i] = event(&c)
	}
	return events, nil
}

func event(c *C.kronsae_event) Event {
	var latents []EventLatent
	for _, latent := range unsafe.Slice(c.latents, c.n_latents) {
		latents = append(latents, EventLatent{uint32(latent.latent), float32(latent.value)})
	}
	return Event{
		Kind: EventKind(c.kind), Severity: Severity(c.severity), Gap: c.gap != 0, Position: int32(c.position),
		Token: int32(c.token), ID: uint64(c.id), Time: time.Unix(0, int64(c.unix_nanos)).UTC(), Request: uint64(c.request),
		Retracts: uint64(c.retracts), Site: C.GoString(c.site), Model: C.GoString(c.model), Rule: C.GoString(c.rule),
		Latents: latents,
	}
}

// Events iterates over events as they are made, until the monitor is stopped and none is left, the loop is left, or ctx is
// done, which is yielded as the last error. Any other error ends it, too. A goroutine polls meanwhile; it has ended when
// the loop has. Events it took that the loop did not see are the first of the next loop. Of several loops at once, each
// event goes to one.
func (m *Monitor) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		polling, stop := context.WithCancel(ctx)
		events := make(chan Event)
		finished := make(chan struct{})
		var failed error // Read when events is closed.
		go func() {
			defer close(finished)
			defer close(events)
			failed = m.deliver(polling, events)
		}()
		defer func() {
			stop()
			<-finished
		}()
		for event := range events {
			if !yield(event, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			failed = err
		}
		if failed != nil && !errors.Is(failed, StatusStopped) {
			yield(Event{}, failed)
		}
	}
}

// deliver polls until ctx is done or a poll fails, and keeps what it could not deliver for the next loop.
func (m *Monitor) deliver(ctx context.Context, to chan<- Event) error {
	for ctx.Err() == nil {
		events, err := m.Poll(eventBatch, pollWait)
		if err != nil {
			return err
		}
		for i, event := range events {
			select {
			case to <- event:
			case <-ctx.Done():
				m.putBack(events[i:])
				return ctx.Err()
			}
		}
	}
	return ctx.Err()
}

func (m *Monitor) takePending(most int) []Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := min(most, len(m.pending))
	events := m.pending[:n:n]
	m.pending = m.pending[n:]
	return events
}

func (m *Monitor) putBack(events []Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending = append(append([]Event(nil), events...), m.pending...)
}
