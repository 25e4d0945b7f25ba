package kronsae

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// enums is every enumeration of the header, and what this package makes of it.
var enums = map[string]map[string]int{
	"STATUS": {"OK": int(StatusOK), "INVALID_ARGUMENT": int(StatusInvalidArgument), "IO": int(StatusIO), "FORMAT": int(StatusFormat),
		"UNSUPPORTED": int(StatusUnsupported), "OUT_OF_MEMORY": int(StatusOutOfMemory), "STOPPED": int(StatusStopped),
		"POISONED": int(StatusPoisoned), "FORKED": int(StatusForked), "INTERNAL": int(StatusInternal),
		"TIMEOUT": int(StatusTimeout), "FULL": int(StatusFull), "DEVICE": int(StatusDevice)},
	"DTYPE":         {"F32": int(F32), "F16": int(F16), "BF16": int(BF16)},
	"PATH":          {"AUTO": int(PathAuto), "PLAIN": int(PathPlain), "SCREENED": int(PathScreened), "FAST": int(PathFast)},
	"ENCODER":       {"KRON": int(EncoderKron), "DENSE": int(EncoderDense)},
	"SELECTION":     {"TOPK": int(SelectionTopK), "THRESHOLD": int(SelectionThreshold)},
	"MONITOR_STATE": {"RUNNING": int(MonitorRunning), "STOPPED": int(MonitorStopped), "FAILED": int(MonitorFailed)},
	"SAMPLING":      {"EVERY": int(SampleEvery), "EVERY_NTH": int(SampleEveryNth), "LAST_PROMPT": int(SampleLastPrompt)},
	"EVENT":         {"MATCHED": int(EventMatched), "RETRACTED": int(EventRetracted)},
	"SEVERITY":      {"INFO": int(SeverityInfo), "WARNING": int(SeverityWarning), "CRITICAL": int(SeverityCritical)},
	"METRICS":       {"PROMETHEUS": int(Prometheus), "OPENMETRICS": int(OpenMetrics)},
	"ROW":           {"NOT_FINITE": int(RowNotFinite), "TRUNCATED": int(RowTruncated)},
	"TOKEN":         {"PROMPT": int(TokenPrompt), "LAST_PROMPT": int(TokenLastPrompt)},
}

// What is no enumeration of this package's: versions, sizes, flags that are fields here; and what encoding on a device takes,
// which is for C and C++ alone: its buffers, stream and workspace are the device's.
var otherConstants = regexp.MustCompile(`^(COMPUTE_\w+|VERSION_\w+|ABI_VERSION|LOG_\w+|MONITOR_SCHED_IDLE|SITE_\w+|RECORD_\w+|TOKEN_TEXT_MOST|ADDRESS_CAPACITY)$`)

// Each constant of the header has its number here, and none is missing.
func TestEnumsAreTheHeaders(t *testing.T) {
	header, err := os.ReadFile("../../include/kronsae.h")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, match := range regexp.MustCompile(`(?m)^#define KRONSAE_(\w+) (\d+)$`).FindAllStringSubmatch(string(header), -1) {
		name := match[1]
		if otherConstants.MatchString(name) {
			continue
		}
		// The longest prefix: MONITOR_STATE_RUNNING is of MONITOR_STATE.
		prefix := ""
		for one := range enums {
			if strings.HasPrefix(name, one+"_") && len(one) > len(prefix) {
				prefix = one
			}
		}
		if prefix == "" {
			t.Errorf("KRONSAE_%s is of no enumeration here", name)
			continue
		}
		number, _ := strconv.Atoi(match[2])
		if got, ok := enums[prefix][name[len(prefix)+1:]]; !ok || got != number {
			t.Errorf("KRONSAE_%s is %d, here %d (%v)", name, number, got, ok)
		}
		found[prefix]++
	}
	for prefix, names := range enums {
		if found[prefix] != len(names) {
			t.Errorf("%s: %d constants in the header, %d here", prefix, found[prefix], len(names))
		}
	}
}

// Encoders of the exact paths agree; an unknown path is refused; asking for AMX succeeds or says why not.
func TestPaths(t *testing.T) {
	sae := openGolden(t, "kron-topk")
	file := readTensors(t, filepath.Join(golden, "encode-kron-topk.safetensors"))
	x := file["activations"].activations(t)
	for _, path := range []Path{PathAuto, PathPlain, PathScreened} {
		encoder, err := sae.NewEncoder(&EncoderOptions{Path: path})
		if err != nil {
			t.Fatal(path, err)
		}
		out := NewLatents(x.Rows(), 5)
		if err := errors.Join(encoder.Encode(x, out), sameLatents(file, out)); err != nil {
			t.Error(path, err)
		}
		encoder.Close()
	}
	fast, err := sae.NewEncoder(&EncoderOptions{Path: PathFast})
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Close()
	if err := fast.Encode(x, NewLatents(x.Rows(), 5)); err != nil {
		t.Error(err)
	}
	_, err = sae.NewEncoder(&EncoderOptions{Path: 99})
	wants(t, err, StatusInvalidArgument)
	if err := RequestAMX(); err != nil && !errors.Is(err, StatusUnsupported) {
		t.Error(err)
	}
}

func TestMust(t *testing.T) {
	if Must(7, nil) != 7 {
		t.Error("not the value")
	}
	defer func() {
		if recover() != ErrClosed {
			t.Error("not the error")
		}
	}()
	Must(7, ErrClosed)
}

func TestStatusesRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for name, number := range enums["STATUS"] {
		status := Status(number)
		if strings.HasPrefix(status.String(), "unknown") || seen[status.String()] {
			t.Errorf("%s: name %q", name, status)
		}
		seen[status.String()] = true
		var err error = &Error{Op: "x", Status: status, Message: "m"}
		if !errors.Is(err, status) || errors.Is(err, status+1) {
			t.Errorf("%s: errors.Is", name)
		}
	}
	for _, number := range []Status{13, 999, -1, math.MaxInt32, math.MinInt32} {
		err := failure("x", statusToC(number), nil)
		var typed *Error
		if !errors.As(err, &typed) || typed.Status != number || !errors.Is(err, number) || errors.Is(err, StatusInternal) {
			t.Errorf("%d became %v", number, err)
		}
		if !strings.Contains(number.String(), strconv.Itoa(int(number))) {
			t.Errorf("%d is called %q", number, number)
		}
	}
	for _, dtype := range []DType{0, 4, -1} {
		if dtype.Size() != 0 || dtype.String() != "unknown dtype "+strconv.Itoa(int(dtype)) {
			t.Errorf("dtype %d: %s", dtype, dtype)
		}
	}
}

func TestVersions(t *testing.T) {
	if Check() != nil || VersionNumber() != HeaderVersionNumber() || ABIVersion() != 0 {
		t.Fatal(Check(), VersionNumber(), HeaderVersionNumber(), ABIVersion())
	}
	var a, b, c uint32
	for i, part := range strings.Split(Version(), ".") {
		n, _ := strconv.Atoi(part)
		*[]*uint32{&a, &b, &c}[i] = uint32(n)
	}
	if 10000*a+100*b+c != VersionNumber() || !strings.Contains(LibraryPath(), "libkronsae") {
		t.Fatal(Version(), LibraryPath())
	}
}

func wants(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, expected %v", err, want)
	}
}

func TestBadInput(t *testing.T) {
	_, err := Open("no/such/file", nil)
	wants(t, err, StatusIO)
	if err != nil && !strings.Contains(err.Error(), "no/such/file") {
		t.Error(err)
	}
	_, err = Open("a\x00b", nil)
	wants(t, err, StatusInvalidArgument)
	for _, data := range [][]byte{nil, {}, []byte("garbage that is no model")} {
		_, err = OpenBytes(data, nil)
		if !errors.Is(err, StatusFormat) && !errors.Is(err, StatusInvalidArgument) {
			t.Error(err)
		}
	}
	sae := openGolden(t, "kron-topk") // d 20, K 5
	encoder, err := sae.NewEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	_, err = sae.NewEncoder(&EncoderOptions{Threads: -1})
	wants(t, err, StatusInvalidArgument)
	x := make([]float32, 40)
	for name, bad := range map[string]struct {
		x   Activations
		out *Latents
	}{
		"no type":        {Activations{}, NewLatents(2, 5)},
		"half a row":     {Float32(x[:30], 20), NewLatents(2, 5)},
		"other d_model":  {Float32(x, 10), NewLatents(4, 5)},
		"d_model 0":      {Float32(x, 0), NewLatents(2, 5)},
		"negative":       {Float32(x, -20), NewLatents(2, 5)},
		"small stride":   {Float32(x, 20).WithStride(19), NewLatents(2, 5)},
		"short last row": {Float32(x[:39], 20).WithStride(20), NewLatents(2, 5)},
		"huge stride":    {Float32(x, 20).WithStride(math.MaxInt), NewLatents(2, 5)},
		"too few rows":   {Float32(x, 20), NewLatents(1, 5)},
		"capacity":       {Float32(x, 20), NewLatents(2, 4)},
		"nil latents":    {Float32(x, 20), nil},
		"zero latents":   {Float32(x, 20), &Latents{}},
		"short values":   {Float32(x, 20), &Latents{Capacity: 5, Counts: make([]uint32, 2), Indices: make([]uint32, 10), Values: make([]float32, 9)}},
		"capacity wraps": {Float32(x, 20), &Latents{Capacity: math.MaxInt, Counts: make([]uint32, 2), Indices: make([]uint32, 10), Values: make([]float32, 10)}},
		"short flags":    {Float32(x, 20), &Latents{Capacity: 5, Counts: make([]uint32, 2), Indices: make([]uint32, 10), Values: make([]float32, 10), Flags: make([]RowFlags, 1)}},
	} {
		if err := encoder.Encode(bad.x, bad.out); !errors.Is(err, StatusInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// No rows are fine, and so are nil slices where nothing is written.
	for _, x := range []Activations{Float32(nil, 20), BFloat16([]uint16{}, 20)} {
		if err := encoder.Encode(x, NewLatents(0, 5)); err != nil {
			t.Error(err)
		}
	}
	latents := NewLatents(2, 5)
	wants(t, sae.Decode(latents, x[:30]), StatusInvalidArgument)
	wants(t, sae.Decode(nil, x), StatusInvalidArgument)
	latents.Counts[0] = 6
	wants(t, sae.Decode(latents, x), StatusInvalidArgument)
	wants(t, sae.Steer(Float32(x, 20), []SteerTerm{{Latent: 36, Coefficient: 1}}), StatusInvalidArgument)
	if err := sae.Steer(Float32(x, 20), nil); err != nil {
		t.Error(err)
	}
	lean, err := Open(filepath.Join(golden, "model-kron-topk.safetensors"), &OpenOptions{EncoderOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer lean.Close()
	wants(t, lean.Decode(NewLatents(2, 5), x), StatusUnsupported)
}

func TestStridedAndSteered(t *testing.T) {
	sae := openGolden(t, "kron-topk")
	encoder, _ := sae.NewEncoder(nil)
	defer encoder.Close()
	flat, wide := make([]float32, 60), make([]float32, 2*23+20)
	for i := range flat {
		flat[i] = float32(i%7) - 2
		wide[i/20*23+i%20] = flat[i]
	}
	a, b := NewLatents(3, 5), NewLatents(3, 5)
	if err := errors.Join(encoder.Encode(Float32(flat, 20), a), encoder.Encode(Float32(wide, 20).WithStride(23), b)); err != nil {
		t.Fatal(err)
	}
	for row := range 3 {
		next := 0
		for index, value := range a.All(row) {
			if b.Indices[row*5+next] != index || b.Values[row*5+next] != value {
				t.Fatal(row, index, value)
			}
			next++
		}
	}
	if a.Counts[0] == 0 {
		t.Fatal("no latents: nothing was compared")
	}
	before := append([]float32(nil), wide...)
	if err := sae.Steer(Float32(wide, 20).WithStride(23), []SteerTerm{{3, 2}}); err != nil {
		t.Fatal(err)
	}
	if wide[0] == before[0] || wide[20] != before[20] || wide[23]-before[23] == 0 {
		t.Fatal("not steered in place", wide[:24])
	}
}

func TestCloseTwiceAndNil(t *testing.T) {
	sae := openGolden(t, "kron-topk")
	encoder, _ := sae.NewEncoder(nil)
	x, out := Float32(make([]float32, 20), 20), NewLatents(1, 5)
	sae.Close()
	sae.Close()
	_, err := sae.Info()
	wants(t, err, ErrClosed)
	wants(t, encoder.Encode(x, out), StatusStopped)
	encoder.Close()
	encoder.Close()
	wants(t, encoder.Encode(x, out), ErrClosed)
	var nothing *Sae
	_, err = nothing.NewEncoder(nil)
	wants(t, err, ErrClosed)
	_, err = (&Sae{}).Info()
	wants(t, err, ErrClosed)
	wants(t, (*Encoder)(nil).Encode(x, out), ErrClosed)
	nothing.Close()
	(&Encoder{}).Close()
	(*Monitor)(nil).Close()
	(*Tap)(nil).Close()
	(*Recorder)(nil).Close()
}

func TestCloseDuringUse(t *testing.T) {
	for range 50 {
		sae := openGolden(t, "kron-bf16")
		encoder, err := sae.NewEncoder(nil)
		if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		for worker := range 4 {
			running.Add(1)
			go func() {
				defer running.Done()
				x, out := BFloat16(make([]uint16, 36*64), 36), NewLatents(64, 12)
				for {
					var err error
					if worker == 0 {
						err = encoder.Encode(x, out)
					} else {
						_, err = sae.Info()
					}
					if err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, StatusStopped) {
							t.Error(err)
						}
						return
					}
				}
			}()
		}
		time.Sleep(time.Millisecond)
		encoder.Close()
		sae.Close()
		running.Wait()
	}
}

// Handles that are not closed are freed by the collector, and never while they are needed.
func TestLeftToTheCollector(t *testing.T) {
	var freed sync.WaitGroup
	for range 20 {
		sae, err := Open(filepath.Join(golden, "model-kron-topk.safetensors"), nil)
		if err != nil {
			t.Fatal(err)
		}
		encoder, err := sae.NewEncoder(&EncoderOptions{Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []*handle{sae.handle, encoder.handle} {
			freed.Add(1)
			destroy := h.destroy
			h.destroy = func(p pointer) { destroy(p); freed.Done() }
		}
		sae = nil
		runtime.GC() // The model is reachable only through the encoder.
		if err := encoder.Encode(Float32(make([]float32, 20), 20), NewLatents(1, 5)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() { freed.Wait(); close(done) }()
	for deadline := time.After(20 * time.Second); ; {
		runtime.GC()
		select {
		case <-done:
			return
		case <-deadline:
			t.Fatal("handles were not freed in 20 s of collections")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestNoAllocationsPerCall(t *testing.T) {
	sae := openGolden(t, "kron-topk")
	encoder, _ := sae.NewEncoder(nil)
	defer encoder.Close()
	wide, narrow, out := make([]float32, 20), make([]uint16, 20), NewLatents(1, 5)
	back := make([]float32, 20)
	for name, call := range map[string]func() error{
		"encode f32":  func() error { return encoder.Encode(Float32(wide, 20), out) },
		"encode bf16": func() error { return encoder.Encode(BFloat16(narrow, 20), out) },
		"encode f16":  func() error { return encoder.Encode(Float16(narrow, 20), out) },
		"info":        func() error { _, err := sae.Info(); return err },
		"decode":      func() error { return sae.Decode(out, back) },
		"steer":       func() error { return sae.Steer(Float32(wide, 20), []SteerTerm{{1, 1}}) },
	} {
		if n := testing.AllocsPerRun(200, func() {
			if err := call(); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Goroutines on one model, each with an encoder; KRONSAE_LONG=1: for a minute.
func TestManyGoroutines(t *testing.T) {
	lasts := 5 * time.Second
	if testing.Short() {
		lasts = time.Second
	}
	if os.Getenv("KRONSAE_LONG") != "" {
		lasts = time.Minute
	}
	sae := openGolden(t, "kron-topk")
	file := readTensors(t, filepath.Join(golden, "encode-kron-topk.safetensors"))
	end := time.Now().Add(lasts)
	var running sync.WaitGroup
	var calls atomic.Int64
	for range 8 {
		running.Add(1)
		go func() {
			defer running.Done()
			x := file["activations"].activations(t)
			encoder, err := sae.NewEncoder(nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer encoder.Close()
			out := NewLatents(x.Rows(), 5)
			for time.Now().Before(end) {
				clear(out.Counts)
				if err := errors.Join(encoder.Encode(x, out), sameLatents(file, out)); err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
			}
		}()
	}
	time.Sleep(lasts / 4)
	early := residentKiB(t)
	running.Wait()
	late := residentKiB(t)
	t.Logf("8 goroutines: %d calls in %v; resident %d KiB after a quarter, %d at the end", calls.Load(), lasts, early, late)
	if late > early+16<<10 || calls.Load() < 100 {
		t.Errorf("%d calls; resident memory went from %d to %d KiB", calls.Load(), early, late)
	}
}

func residentKiB(t *testing.T) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc")
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatal("no VmRSS")
	}
	kib, _ := strconv.Atoi(string(match[1]))
	return kib
}
