// Command kronsae-gateway is an HTTP gateway to a sparse autoencoder: it encodes activations that are posted to it, and
// streams the events of a file of rules.
//
//	POST /v1/encode?dtype=bf16                       rows of raw little-endian elements; answers with their latents
//	POST /v1/encode?dtype=f32&request=7&position=0   the same, and the monitor sees the rows as a request's tokens
//	GET  /v1/events                                  events as a text/event-stream
//	GET  /v1/info, /metrics                          the model; the monitor's metrics for Prometheus
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	model := flag.String("model", "", "model file")
	rules := flag.String("rules", "", "file of rules (TOML)")
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen at")
	encoders := flag.Int("encoders", 2, "requests encoded at a time")
	body := flag.Int64("max-body", 64<<20, "the most bytes of a posted body")
	flag.Parse()
	if err := run(*model, *rules, *listen, *encoders, *body); err != nil {
		log.Fatal(err)
	}
}

func run(model, rules, listen string, encoders int, body int64) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	gateway, err := newGateway(model, rules, encoders, body)
	if err != nil {
		return err
	}
	defer gateway.close()
	streaming, endStreams := context.WithCancel(ctx)
	defer endStreams()
	broadcast := make(chan error, 1)
	go func() { broadcast <- gateway.broadcast(streaming) }()
	server := &http.Server{Addr: listen, Handler: gateway.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	log.Printf("serving %s at http://%s", model, listen)
	select {
	case err = <-served:
		endStreams()
		<-broadcast
		return err
	case <-ctx.Done():
	}
	// Streams end with the broadcast, so that Shutdown does not wait for them.
	if err := <-broadcast; err != nil && !errors.Is(err, context.Canceled) {
		log.Print(err)
	}
	ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(ending)
}
