package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync"
	"unsafe"

	kronsae "github.com/kronsae/kronsae/bindings/go"
)

// gateway is a model, a monitor of it, and workers that requests borrow.
type gateway struct {
	sae     *kronsae.Sae
	info    kronsae.SaeInfo
	monitor *kronsae.Monitor
	workers chan *worker
	maxBody int64

	mu      sync.Mutex
	clients map[chan kronsae.Event]struct{} // Nil once there will be no more events.
}

// worker is what one request at a time uses.
type worker struct {
	encoder *kronsae.Encoder
	tap     *kronsae.Tap
}

func newGateway(model, rules string, workers int, maxBody int64) (*gateway, error) {
	g := &gateway{workers: make(chan *worker, max(workers, 1)), maxBody: maxBody, clients: map[chan kronsae.Event]struct{}{}}
	if err := g.open(model, rules); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *gateway) open(model, rules string) error {
	var err error
	if g.sae, err = kronsae.Open(model, nil); err != nil {
		return err
	}
	if g.info, err = g.sae.Info(); err != nil {
		return err
	}
	if g.monitor, err = kronsae.NewMonitor(nil); err != nil {
		return err
	}
	site, err := g.monitor.AddSite(kronsae.SiteOptions{Name: "gateway"}, g.sae)
	if err != nil {
		return err
	}
	if rules != "" {
		if err := g.monitor.LoadRules(rules); err != nil {
			return err
		}
	}
	for range cap(g.workers) {
		encoder, err := g.sae.NewEncoder(nil)
		if err != nil {
			return err
		}
		tap, err := site.NewTap(nil)
		if err != nil {
			encoder.Close()
			return err
		}
		g.workers <- &worker{encoder, tap}
	}
	return nil
}

// close frees everything; requests have ended.
func (g *gateway) close() {
	for len(g.workers) > 0 {
		w := <-g.workers
		w.tap.Close()
		w.encoder.Close()
	}
	g.monitor.Close()
	g.sae.Close()
}

func (g *gateway) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/encode", g.encode)
	mux.HandleFunc("GET /v1/events", g.events)
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) { answer(w, g.info) })
	mux.HandleFunc("GET /metrics", g.metrics)
	return mux
}

func (g *gateway) metrics(w http.ResponseWriter, _ *http.Request) {
	text, err := g.monitor.Metrics(kronsae.Prometheus)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(text)
}

// row is the latents of a token, strongest first.
type row struct {
	Indices   []uint32  `json:"indices"`
	Values    []float32 `json:"values"`
	NotFinite bool      `json:"not_finite,omitempty"`
	Truncated bool      `json:"truncated,omitempty"`
}

func (g *gateway) encode(w http.ResponseWriter, r *http.Request) {
	x, err := g.activations(w, r)
	if err != nil {
		refuse(w, err)
		return
	}
	var tags []kronsae.TokenTag
	if query := r.URL.Query(); query.Has("request") {
		request, err := strconv.ParseUint(query.Get("request"), 10, 64)
		position, err2 := strconv.ParseInt(query.Get("position"), 10, 32)
		if err = errors.Join(err, err2); err != nil || position < 0 || position > math.MaxInt32-int64(x.Rows()) {
			http.Error(w, fmt.Sprintf("request and position must be numbers from 0: %v", err), http.StatusBadRequest)
			return
		}
		for i := range x.Rows() {
			tags = append(tags, kronsae.TokenTag{Request: request, Position: int32(position) + int32(i), Token: -1})
		}
	}
	var worker *worker
	select {
	case worker = <-g.workers:
	case <-r.Context().Done():
		return
	}
	latents := kronsae.NewLatents(x.Rows(), g.info.Capacity)
	if tags != nil {
		_, err = worker.tap.Encode(x, tags, latents)
	} else {
		err = worker.encoder.Encode(x, latents)
	}
	g.workers <- worker
	if err != nil {
		refuse(w, err)
		return
	}
	rows := make([]row, x.Rows())
	for i := range rows {
		indices, values := latents.Row(i)
		rows[i] = row{indices, values, latents.Flags[i]&kronsae.RowNotFinite != 0, latents.Flags[i]&kronsae.RowTruncated != 0}
	}
	answer(w, map[string][]row{"rows": rows})
}

// activations reads a body into elements.
func (g *gateway) activations(w http.ResponseWriter, r *http.Request) (kronsae.Activations, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.maxBody))
	if err != nil {
		return kronsae.Activations{}, err
	}
	dtype, size := r.URL.Query().Get("dtype"), 2
	if dtype == "f32" {
		size = 4
	}
	if len(body)%(size*g.info.DModel) != 0 {
		return kronsae.Activations{}, bad("the body has %d bytes, expected whole rows of %d elements of %d bytes",
			len(body), g.info.DModel, size)
	}
	switch dtype {
	case "f32":
		return kronsae.Float32(elements[float32](body), g.info.DModel), nil
	case "f16":
		return kronsae.Float16(elements[uint16](body), g.info.DModel), nil
	case "bf16":
		return kronsae.BFloat16(elements[uint16](body), g.info.DModel), nil
	}
	return kronsae.Activations{}, bad("dtype is %q, expected f32, f16 or bf16", dtype)
}

// elements copies bytes into a slice that is aligned for T.
func elements[T float32 | uint16](body []byte) []T {
	var one T
	out := make([]T, len(body)/int(unsafe.Sizeof(one)))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(out))), len(body)), body)
	return out
}

func bad(format string, values ...any) error {
	return &kronsae.Error{Op: "encode", Status: kronsae.StatusInvalidArgument, Message: fmt.Sprintf(format, values...)}
}

// refuse answers with an error's text and the HTTP status that fits it.
func refuse(w http.ResponseWriter, err error) {
	var large *http.MaxBytesError
	code := http.StatusInternalServerError
	switch {
	case errors.As(err, &large):
		code = http.StatusRequestEntityTooLarge
	case errors.Is(err, kronsae.StatusInvalidArgument):
		code = http.StatusBadRequest
	case errors.Is(err, kronsae.StatusStopped), errors.Is(err, kronsae.ErrClosed):
		code = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), code)
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here is a client that has gone.
	_ = json.NewEncoder(w).Encode(value)
}

// broadcast gives the monitor's events to every client until ctx is done or the monitor ends. A client that does not keep
// up loses events, which it can see by their ids.
func (g *gateway) broadcast(ctx context.Context) error {
	defer g.endClients()
	for event, err := range g.monitor.Events(ctx) {
		if err != nil {
			return err
		}
		g.mu.Lock()
		for client := range g.clients {
			select {
			case client <- event:
			default:
			}
		}
		g.mu.Unlock()
	}
	return nil
}

func (g *gateway) endClients() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for client := range g.clients {
		close(client)
	}
	g.clients = nil
}

func (g *gateway) events(w http.ResponseWriter, r *http.Request) {
	client := make(chan kronsae.Event, 256)
	g.mu.Lock()
	if g.clients == nil {
		g.mu.Unlock()
		http.Error(w, "the monitor has ended", http.StatusServiceUnavailable)
		return
	}
	g.clients[client] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.clients, client)
		g.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flush := http.NewResponseController(w)
	if flush.Flush() != nil {
		return
	}
	for {
		select {
		case event, ok := <-client:
			if !ok {
				return
			}
			text, err := json.Marshal(event)
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", event.ID, event.Kind, text); err != nil || flush.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
