package kronsae

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const anyRule = "[[rule]]\nname = \"seen\"\nwhen = { any = [%s] }\n"

// anyLatent matches every token that has a latent of the model of 36.
func anyLatent() string {
	var terms []string
	for i := range 36 {
		terms = append(terms, "{ latent = "+string(rune('0'+i/10))+string(rune('0'+i%10))+", above = 0.0 }")
	}
	text := strings.Replace(anyRule, "%s", strings.Join(terms, ", "), 1)
	return strings.ReplaceAll(strings.ReplaceAll(text, "latent = 0", "latent = "), "latent = ,", "latent = 0,")
}

func newMonitored(t testing.TB) (*Monitor, *Site, *Tap) {
	t.Helper()
	monitor, err := NewMonitor(&MonitorOptions{CPUs: []uint32{0}, Events: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { monitor.Close() })
	sae := openGolden(t, "kron-topk")
	site, err := monitor.AddSite(SiteOptions{Name: "residual", Watch: []uint32{1, 2}}, sae)
	if err != nil {
		t.Fatal(err)
	}
	sae.Close() // The monitor keeps what it needs.
	if err := monitor.SetRules(anyLatent()); err != nil {
		t.Fatal(err)
	}
	tap, err := site.NewTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	return monitor, site, tap
}

// submitOne submits a token that has latents.
func submitOne(t testing.TB, tap *Tap, request uint64, position int32) {
	t.Helper()
	x := make([]float32, 20)
	for i := range x {
		x[i] = float32(i%7) - 2
	}
	if n, err := tap.Submit(Float32(x, 20), []TokenTag{{Request: request, Position: position, Token: -1}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func TestMonitor(t *testing.T) {
	monitor, site, tap := newMonitored(t)
	ctx := t.Context()
	for position := range int32(10) {
		submitOne(t, tap, 7, position)
	}
	if err := monitor.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	// A loop that is left early loses nothing.
	var next uint64 = 1
	for range 3 {
		for event, err := range monitor.Events(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if event.ID != next || event.Rule != "seen" || event.Site != "residual" || event.Request != 7 ||
				event.Position != int32(next-1) || event.Token != -1 || event.Kind != EventMatched || len(event.Latents) == 0 ||
				len(event.Model) != 16 || time.Since(event.Time) > time.Hour {
				t.Fatalf("%+v", event)
			}
			next++
			if next%3 == 0 {
				break
			}
			if next == 9 {
				break
			}
		}
	}
	if next != 9 {
		t.Fatal(next)
	}
	// A cancelled loop says so, soon.
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	start, last := time.Now(), error(nil)
	for _, err := range monitor.Events(short) {
		last = err
	}
	if !errors.Is(last, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Fatal(last, time.Since(start))
	}
	if err := errors.Join(tap.Rewind(7, 5), tap.EndRequest(7), monitor.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	status, err := monitor.Status()
	if err != nil || status.State != MonitorRunning || status.Submitted != 10 || status.Encoded != 10 || status.Queued != 0 {
		t.Fatal(status, err)
	}
	metrics, err := monitor.Metrics(Prometheus)
	if err != nil || !strings.Contains(string(metrics), "residual") {
		t.Fatal(string(metrics), err)
	}
	snapshot, err := monitor.SnapshotJSON()
	if err != nil || snapshot[0] != '{' {
		t.Fatal(string(snapshot), err)
	}
	_, err = monitor.Metrics(99)
	wants(t, err, StatusInvalidArgument)

	folder := filepath.Join(t.TempDir(), "shards")
	recorder, err := site.Record(RecorderOptions{Folder: folder, Model: "tiny"})
	if err != nil {
		t.Fatal(err)
	}
	submitOne(t, tap, 8, 1)
	if err := monitor.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := recorder.Status(); err != nil || !got.Recording {
		t.Fatal(got, err)
	}
	recorder.Close()
	recorder.Close()
	if entries, err := os.ReadDir(folder); err != nil || len(entries) == 0 {
		t.Fatal(entries, err)
	}
	_, err = recorder.Status()
	wants(t, err, ErrClosed)

	if err := errors.Join(monitor.Stop(ctx), monitor.Stop(ctx)); err != nil {
		t.Fatal(err)
	}
	_, err = tap.Submit(Float32(make([]float32, 20), 20), make([]TokenTag, 1))
	wants(t, err, StatusStopped)
	// What is left is delivered, then the loop ends without an error.
	rest, retracted := 0, 0
	for event, err := range monitor.Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		rest++
		if event.Kind == EventRetracted {
			retracted++
		}
	}
	if rest == 0 || retracted != 5 {
		t.Fatal(rest, retracted)
	}
}

func TestMonitorBadInput(t *testing.T) {
	monitor, site, tap := newMonitored(t)
	_, err := NewMonitor(&MonitorOptions{Workers: -1})
	wants(t, err, StatusInvalidArgument)
	_, err = NewMonitor(&MonitorOptions{MemoryLimit: 1})
	wants(t, err, StatusOutOfMemory)
	_, err = monitor.AddSite(SiteOptions{}, nil)
	wants(t, err, StatusInvalidArgument)
	_, err = monitor.AddSite(SiteOptions{Name: "a\x00b", DModel: 4}, nil)
	wants(t, err, StatusInvalidArgument)
	_, err = monitor.AddSite(SiteOptions{Name: "closed"}, &Sae{})
	wants(t, err, ErrClosed)
	wants(t, monitor.SetRules("not toml ["), StatusFormat)
	wants(t, monitor.LoadRules("no/such/rules"), StatusIO)
	wants(t, site.LoadLabels("no/such/labels"), StatusIO)
	wants(t, site.Replace(nil), ErrClosed)
	_, err = site.NewTap(&TapOptions{Sampling: 77})
	wants(t, err, StatusInvalidArgument)
	_, err = site.NewTap(&TapOptions{Capacity: -1})
	wants(t, err, StatusInvalidArgument)
	x := make([]float32, 40)
	_, err = tap.Submit(Float32(x, 20), make([]TokenTag, 1))
	wants(t, err, StatusInvalidArgument)
	_, err = tap.Submit(Float32(x, 20), nil)
	wants(t, err, StatusInvalidArgument)
	_, err = tap.Submit(Float32(x, 40), make([]TokenTag, 1))
	wants(t, err, StatusInvalidArgument)
	if n, err := tap.Submit(Float32(nil, 20), nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	_, err = site.Record(RecorderOptions{})
	wants(t, err, StatusInvalidArgument)
	_, err = monitor.Poll(0, 0)
	wants(t, err, StatusInvalidArgument)
	_, err = tap.Encode(Float32(x, 20), make([]TokenTag, 2), NewLatents(1, 5))
	wants(t, err, StatusInvalidArgument)
	full, err := site.NewTap(&TapOptions{Controls: 1, Capacity: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for range 1000000 {
		if err = full.EndRequest(1); err != nil {
			break
		}
	}
	wants(t, err, StatusFull)
	monitor.Close()
	monitor.Close()
	wants(t, tap.EndRequest(1), StatusStopped)
	for _, err = range monitor.Events(t.Context()) {
	}
	wants(t, err, ErrClosed)
}

func TestMonitorClosedDuringUse(t *testing.T) {
	for range 20 {
		monitor, _, tap := newMonitored(t)
		var running sync.WaitGroup
		for worker := range 3 {
			running.Add(1)
			go func() {
				defer running.Done()
				x, out := Float32(make([]float32, 20), 20), NewLatents(1, 5)
				var err error
				for err == nil {
					switch worker {
					case 0:
						_, err = tap.Encode(x, make([]TokenTag, 1), out)
					case 1:
						_, err = monitor.Status()
					case 2:
						for _, err = range monitor.Events(t.Context()) {
						}
					}
				}
				if !errors.Is(err, ErrClosed) && !errors.Is(err, StatusStopped) {
					t.Error(err)
				}
			}()
		}
		time.Sleep(2 * time.Millisecond)
		monitor.Close()
		tap.Close()
		running.Wait()
	}
}

func TestTapAllocatesNothing(t *testing.T) {
	_, _, tap := newMonitored(t)
	x, tags := make([]uint16, 20), make([]TokenTag, 1)
	if n := testing.AllocsPerRun(500, func() {
		tags[0].Position++
		if _, err := tap.Submit(BFloat16(x, 20), tags); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("submit: %v allocations", n)
	}
}
