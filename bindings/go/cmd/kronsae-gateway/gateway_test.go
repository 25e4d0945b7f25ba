package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	kronsae "github.com/kronsae/kronsae/bindings/go"
)

const model = "../../../../data/golden/model-kron-topk.safetensors"

func post(t *testing.T, url string, body []byte) (int, string) {
	t.Helper()
	response, err := http.Post(url, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestGateway(t *testing.T) {
	var terms []string
	for i := range 36 {
		terms = append(terms, fmt.Sprintf("{ latent = %d, above = 0.0 }", i))
	}
	rules := filepath.Join(t.TempDir(), "rules.toml")
	text := "[[rule]]\nname = \"seen\"\nwhen = { any = [" + strings.Join(terms, ", ") + "] }\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := newGateway(model, rules, 2, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.broadcast(ctx) }()
	server := httptest.NewServer(g.handler())
	defer server.Close()

	// What the binding computes itself, bit for bit through JSON.
	x := make([]float32, 3*20)
	for i := range x {
		x[i] = float32(i%7) - 2.3
	}
	sae, err := kronsae.Open(model, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer sae.Close()
	encoder, err := sae.NewEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	want := kronsae.NewLatents(3, 5)
	if err := encoder.Encode(kronsae.Float32(x, 20), want); err != nil {
		t.Fatal(err)
	}
	body := unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*len(x))

	stream, err := http.Get(server.URL + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	for _, query := range []string{"dtype=f32", "dtype=f32&request=7&position=4"} {
		code, text := post(t, server.URL+"/v1/encode?"+query, body)
		var got struct{ Rows []row }
		if err := json.Unmarshal([]byte(text), &got); code != 200 || err != nil || len(got.Rows) != 3 {
			t.Fatal(code, text, err)
		}
		for i, row := range got.Rows {
			indices, values := want.Row(i)
			if len(indices) == 0 || fmt.Sprint(row.Indices, row.Values) != fmt.Sprint(indices, values) {
				t.Fatal(row, indices, values)
			}
		}
	}
	lines := bufio.NewScanner(stream.Body)
	for position := 4; position < 7; {
		if !lines.Scan() {
			t.Fatal("the stream ended", lines.Err())
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var event kronsae.Event
		if err := json.Unmarshal([]byte(data), &event); err != nil || event.Request != 7 || int(event.Position) != position {
			t.Fatal(data, err)
		}
		position++
	}
	for query, code := range map[string]int{
		"dtype=f32": 200, "dtype=f64": 400, "": 400, "dtype=f32&request=x": 400, "dtype=f32&request=1&position=2147483647": 400,
	} {
		if got, text := post(t, server.URL+"/v1/encode?"+query, body); got != code {
			t.Errorf("%s: %d %s", query, got, text)
		}
	}
	if code, text := post(t, server.URL+"/v1/encode?dtype=f32", body[:79]); code != 400 || !strings.Contains(text, "79") {
		t.Error(code, text)
	}
	if code, _ := post(t, server.URL+"/v1/encode?dtype=f32", make([]byte, 2<<20)); code != 413 {
		t.Error(code)
	}
	for _, path := range []string{"/v1/info", "/metrics"} {
		if response, err := http.Get(server.URL + path); err != nil || response.StatusCode != 200 {
			t.Error(path, err)
		}
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
	for lines.Scan() { // The stream ends with the broadcast.
	}
}

func TestGatewayRefusesToStart(t *testing.T) {
	if _, err := newGateway("no/such/model", "", 1, 1); err == nil {
		t.Error("no error")
	}
	if _, err := newGateway(model, "no/such/rules", 1, 1); err == nil {
		t.Error("no error")
	}
}
