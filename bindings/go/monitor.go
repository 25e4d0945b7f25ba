package kronsae

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"
	"unsafe"
)

// Monitor watches which latents fire while a host serves. Any number of goroutines may use one at once.
type Monitor struct {
	handle  *handle
	cleanup runtime.Cleanup

	mu sync.Mutex
	// Events that were taken from the library for a loop that ended before it saw them; the next one sees them first.
	pending []Event
}

// MonitorOptions says how a monitor works. The zero value is the default; fields are those of kronsae_monitor_options.
type MonitorOptions struct {
	SchedIdle            bool // Workers run only on CPU time that nobody else wants.
	Workers              int
	EncoderThreads       int // Of each worker.
	Requests             int // Requests of a site with state at a time.
	Events               int // Events that wait to be polled.
	RecentTokens         int
	Watched              int
	Nice                 int
	CPUShare             float32
	LeastTokensPerSecond float32
	HalfLifeTokens       float64
	CPUs                 []uint32
	MemoryLimit          int
}

// NewMonitor makes a monitor without sites and starts its workers. options may be nil.
//
// Errors: [StatusInvalidArgument], [StatusOutOfMemory], [StatusUnsupported], [*ABIError].
func NewMonitor(options *MonitorOptions) (*Monitor, error) {
	const op = "new monitor"
	if abiError != nil {
		return nil, abiError
	}
	o := options
	if o == nil {
		o = &MonitorOptions{}
	}
	c := C.kronsae_monitor_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_monitor_options{}))}
	for _, field := range []struct {
		what string
		from int
		to   *C.uint32_t
	}{
		{"workers", o.Workers, &c.workers}, {"encoder threads", o.EncoderThreads, &c.encoder_threads},
		{"requests", o.Requests, &c.requests}, {"events", o.Events, &c.events},
		{"recent tokens", o.RecentTokens, &c.recent_tokens}, {"watched", o.Watched, &c.watched},
	} {
		value, err := number(op, field.what, field.from)
		if err != nil {
			return nil, err
		}
		*field.to = value
	}
	if o.Nice < math.MinInt32 || o.Nice > math.MaxInt32 {
		return nil, invalid(op, "nice is %d, expected -20 to 19", o.Nice)
	}
	limit, err := size(op, "memory limit", o.MemoryLimit)
	if err != nil {
		return nil, err
	}
	c.nice, c.memory_limit = C.int32_t(o.Nice), limit
	c.cpu_share, c.least_tokens_per_second = C.float(o.CPUShare), C.float(o.LeastTokensPerSecond)
	c.half_life_tokens = C.double(o.HalfLifeTokens)
	if o.SchedIdle {
		c.flags |= C.KRONSAE_MONITOR_SCHED_IDLE
	}
	if len(o.CPUs) > 0 {
		// c is Go memory that is handed to C: what it points to must not move.
		var pinner runtime.Pinner
		defer pinner.Unpin()
		pinner.Pin(&o.CPUs[0])
		c.cpus, c.n_cpus = words(o.CPUs), C.size_t(len(o.CPUs))
	}
	var monitor *C.kronsae_monitor
	var e *C.kronsae_error
	if status := C.kronsae_monitor_create(&c, &monitor, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	m := &Monitor{handle: newHandle(unsafe.Pointer(monitor), func(p unsafe.Pointer) {
		C.kronsae_monitor_destroy((*C.kronsae_monitor)(p))
	})}
	m.cleanup = runtime.AddCleanup(m, (*handle).close, m.handle)
	return m, nil
}

// use begins a call; done must follow if there was no error.
func (m *Monitor) use() (*C.kronsae_monitor, error) {
	if m == nil {
		return nil, ErrClosed
	}
	pointer := m.handle.acquire()
	if pointer == nil {
		return nil, ErrClosed
	}
	return (*C.kronsae_monitor)(pointer), nil
}

func (m *Monitor) done() {
	m.handle.release()
	// Collected any earlier, the cleanup could close the handle before the call has begun.
	runtime.KeepAlive(m)
}

// Close ends the monitor without draining its queues ([Monitor.Stop] drains) and frees it. Its taps and recorders return
// [StatusStopped] from then on. It always returns nil, and may be called again.
func (m *Monitor) Close() error {
	if m != nil {
		m.cleanup.Stop()
		m.handle.close()
		runtime.KeepAlive(m)
	}
	return nil
}

// MonitorState is what a monitor is doing.
type MonitorState int32

// States of a monitor.
const (
	MonitorRunning MonitorState = 1
	MonitorStopped MonitorState = 2
	MonitorFailed  MonitorState = 3 // A bug was caught in a worker; the snapshot says why.
)

func (s MonitorState) String() string {
	switch s {
	case MonitorRunning:
		return "running"
	case MonitorStopped:
		return "stopped"
	case MonitorFailed:
		return "failed"
	}
	return unknown("state", int32(s))
}

// MonitorStatus is where tokens went: Submitted = Encoded + SampledOut + Dropped + NotFinite + Queued, always.
type MonitorStatus struct {
	State                                                      MonitorState
	Submitted, Encoded, SampledOut, Dropped, NotFinite, Queued uint64
	Events, EventsLost                                         uint64
	Memory                                                     uint64
	CPUSeconds                                                 float64
	Uptime                                                     time.Duration
}

// Status says what the monitor is doing.
func (m *Monitor) Status() (MonitorStatus, error) {
	monitor, err := m.use()
	if err != nil {
		return MonitorStatus{}, err
	}
	defer m.done()
	c := C.kronsae_monitor_status{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_monitor_status{}))}
	var e *C.kronsae_error
	if status := C.kronsae_monitor_get_status(monitor, &c, &e); status != 0 {
		return MonitorStatus{}, failure("monitor status", status, e)
	}
	return MonitorStatus{
		State: MonitorState(c.state), Submitted: uint64(c.submitted), Encoded: uint64(c.encoded),
		SampledOut: uint64(c.sampled_out), Dropped: uint64(c.dropped), NotFinite: uint64(c.not_finite),
		Queued: uint64(c.queued), Events: uint64(c.events), EventsLost: uint64(c.events_lost), Memory: uint64(c.memory),
		CPUSeconds: float64(c.cpu_seconds), Uptime: time.Duration(float64(c.uptime) * float64(time.Second)),
	}, nil
}

// longestWait is how long a call that a context can cancel stays inside the library at a time.
const longestWait = 250 * time.Millisecond

// wait repeats a call of a timeout until it succeeds, fails otherwise, or ctx is done; then the error is both the
// context's and StatusTimeout.
func (m *Monitor) wait(ctx context.Context, op string, call func(*C.kronsae_monitor, C.uint32_t, **C.kronsae_error) C.kronsae_status) error {
	monitor, err := m.use()
	if err != nil {
		return err
	}
	defer m.done()
	for {
		wait := longestWait
		if deadline, ok := ctx.Deadline(); ok {
			wait = min(wait, time.Until(deadline))
		}
		var e *C.kronsae_error
		err := failure(op, call(monitor, milliseconds(wait), &e), e)
		if failed, ok := err.(*Error); !ok || failed.Status != StatusTimeout {
			return err
		}
		if done := ctx.Err(); done != nil {
			return fmt.Errorf("%w (%w)", err, done)
		}
	}
}

// Flush waits until all that was submitted before is encoded and its events are made.
//
// Errors: [StatusTimeout], with the context's error, if ctx ends first; [StatusStopped]; [StatusPoisoned].
func (m *Monitor) Flush(ctx context.Context) error {
	return m.wait(ctx, "flush", func(m *C.kronsae_monitor, ms C.uint32_t, e **C.kronsae_error) C.kronsae_status {
		return C.kronsae_monitor_flush(m, ms, e)
	})
}

// Stop ends the monitor's work: taps refuse, what they took in is encoded, recordings are closed. Counters and events can
// still be asked for. Stopping again is no error.
//
// Errors: [StatusTimeout], with the context's error, if ctx ends first; it may be called again.
func (m *Monitor) Stop(ctx context.Context) error {
	return m.wait(ctx, "stop", func(m *C.kronsae_monitor, ms C.uint32_t, e **C.kronsae_error) C.kronsae_status {
		return C.kronsae_monitor_stop(m, ms, e)
	})
}

// LoadRules reads a TOML file of rules and puts them in force; on an error the old ones stay.
func (m *Monitor) LoadRules(path string) error {
	const op = "load rules"
	monitor, err := m.use()
	if err != nil {
		return err
	}
	defer m.done()
	name, err := cString(op, "the path", path)
	if err != nil {
		return err
	}
	defer freeString(name)
	var e *C.kronsae_error
	return failure(op, C.kronsae_monitor_load_rules(monitor, name, &e), e)
}

// SetRules is [Monitor.LoadRules] from memory. Of no text there are no rules.
func (m *Monitor) SetRules(toml string) error {
	monitor, err := m.use()
	if err != nil {
		return err
	}
	defer m.done()
	var e *C.kronsae_error
	status := C.kronsae_monitor_set_rules(monitor, (*C.char)(unsafe.Pointer(unsafe.StringData(toml))), C.size_t(len(toml)), &e)
	return failure("set rules", status, e)
}

// MetricsForm is a text form of metrics.
type MetricsForm int32

// Forms of metrics.
const (
	Prometheus  MetricsForm = 1 // Content type "text/plain; version=0.0.4; charset=utf-8".
	OpenMetrics MetricsForm = 2 // Content type "application/openmetrics-text; version=1.0.0; charset=utf-8".
)

// Metrics are the monitor's metrics as text, for the endpoint a host serves.
func (m *Monitor) Metrics(form MetricsForm) ([]byte, error) {
	return m.text("metrics", func(m *C.kronsae_monitor, to *C.char, room C.size_t, size *C.size_t, e **C.kronsae_error) C.kronsae_status {
		return C.kronsae_monitor_metrics(m, C.kronsae_metrics_form(form), to, room, size, e)
	})
}

// SnapshotJSON is all that the monitor counts, a JSON object.
func (m *Monitor) SnapshotJSON() ([]byte, error) {
	return m.text("snapshot", func(m *C.kronsae_monitor, to *C.char, room C.size_t, size *C.size_t, e **C.kronsae_error) C.kronsae_status {
		return C.kronsae_monitor_snapshot_json(m, to, room, size, e)
	})
}

// text gives a call more room until its text, which changes meanwhile, fits.
func (m *Monitor) text(op string, call func(*C.kronsae_monitor, *C.char, C.size_t, *C.size_t, **C.kronsae_error) C.kronsae_status) ([]byte, error) {
	monitor, err := m.use()
	if err != nil {
		return nil, err
	}
	defer m.done()
	room := 16 << 10
	for {
		buffer := make([]byte, room)
		var size C.size_t
		var e *C.kronsae_error
		if status := call(monitor, (*C.char)(unsafe.Pointer(&buffer[0])), C.size_t(room), &size, &e); status != 0 {
			return nil, failure(op, status, e)
		}
		if int(size) < room {
			return buffer[:size], nil
		}
		room = int(size) + int(size)/8 + 1024
	}
}

// ServeOptions says how the live page is served. The zero value is the default.
type ServeOptions struct {
	Clients int      // That may follow the events at a time; 0: 16.
	Address string   // "" is "127.0.0.1:9464"; port 0 is any free one. Beyond loopback it needs a token.
	Token   string   // What clients must send as "Authorization: Bearer ...".
	Hosts   []string // Names by which clients may call the server, besides IP addresses and localhost.
}

// Serve serves the live page over HTTP on threads of the library and returns the address. options may be nil.
//
// Errors: [StatusIO] if it cannot listen there; [StatusUnsupported] if the library was built without the live page.
func (m *Monitor) Serve(options *ServeOptions) (string, error) {
	const op = "serve"
	monitor, err := m.use()
	if err != nil {
		return "", err
	}
	defer m.done()
	o := options
	if o == nil {
		o = &ServeOptions{}
	}
	c := C.kronsae_serve_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_serve_options{}))}
	if c.clients, err = number(op, "clients", o.Clients); err != nil {
		return "", err
	}
	if c.address, err = optionalCString(op, "the address", o.Address); err != nil {
		return "", err
	}
	defer freeString(c.address)
	if c.token, err = optionalCString(op, "the token", o.Token); err != nil {
		return "", err
	}
	defer freeString(c.token)
	if len(o.Hosts) > 0 {
		hosts := make([]*C.char, len(o.Hosts))
		for i, host := range o.Hosts {
			if hosts[i], err = cString(op, "a host", host); err != nil {
				return "", err
			}
			defer freeString(hosts[i])
		}
		var pinner runtime.Pinner
		defer pinner.Unpin()
		pinner.Pin(&hosts[0])
		c.hosts, c.n_hosts = &hosts[0], C.size_t(len(hosts))
	}
	var bound [C.KRONSAE_ADDRESS_CAPACITY]C.char
	var e *C.kronsae_error
	if status := C.kronsae_monitor_serve(monitor, &c, &bound[0], C.size_t(len(bound)), &e); status != 0 {
		return "", failure(op, status, e)
	}
	return C.GoString(&bound[0]), nil
}
