package kronsae

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"
)

const golden = "../../data/golden"

var goldenNames = []string{"kron-topk", "kron-bf16", "kron-f16", "kron-ties", "kron-threshold", "dense-topk", "dense-jumprelu"}

// tensor is one of a safetensors file.
type tensor struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
	data    []byte
}

func readTensors(t testing.TB, path string) map[string]tensor {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header := 8 + int(binary.LittleEndian.Uint64(file))
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(file[8:header], &raw); err != nil {
		t.Fatal(err)
	}
	tensors := map[string]tensor{}
	for name, text := range raw {
		if name == "__metadata__" {
			continue
		}
		var one tensor
		if err := json.Unmarshal(text, &one); err != nil {
			t.Fatal(err)
		}
		one.data = file[header+one.Offsets[0] : header+one.Offsets[1]]
		tensors[name] = one
	}
	return tensors
}

// as copies a tensor's bytes into elements, which aligns them.
func as[T any](one tensor) []T {
	var element T
	out := make([]T, len(one.data)/int(unsafe.Sizeof(element)))
	if len(out) > 0 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&out[0])), len(one.data)), one.data)
	}
	return out
}

func (one tensor) activations(t testing.TB) Activations {
	t.Helper()
	switch one.DType {
	case "F32":
		return Float32(as[float32](one), one.Shape[1])
	case "F16":
		return Float16(as[uint16](one), one.Shape[1])
	case "BF16":
		return BFloat16(as[uint16](one), one.Shape[1])
	}
	t.Fatalf("activations of dtype %s", one.DType)
	return Activations{}
}

func openGolden(t testing.TB, name string) *Sae {
	t.Helper()
	sae, err := Open(filepath.Join(golden, "model-"+name+".safetensors"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sae.Close() })
	return sae
}

// sameLatents compares by bits with what a golden file says.
func sameLatents(file map[string]tensor, got *Latents) error {
	counts, indices, values := as[uint32](file["counts"]), as[uint32](file["indices"]), as[float32](file["values"])
	capacity := file["indices"].Shape[1]
	if !slices.Equal(got.Counts, counts) || !slices.Equal(got.Active, as[uint32](file["active"])) ||
		!slices.Equal(got.Flags, as[RowFlags](file["flags"])) {
		return fmt.Errorf("counts %v, active %v, flags %v differ", got.Counts, got.Active, got.Flags)
	}
	for row := range counts {
		from, to := row*capacity, row*capacity+int(counts[row])
		gotIndices, gotValues := got.Row(row)
		if !slices.Equal(gotIndices, indices[from:to]) {
			return fmt.Errorf("row %d: indices %v, expected %v", row, gotIndices, indices[from:to])
		}
		for i, value := range values[from:to] {
			if math.Float32bits(value) != math.Float32bits(gotValues[i]) {
				return fmt.Errorf("row %d, entry %d: value %v, expected %v", row, i, gotValues[i], value)
			}
		}
	}
	return nil
}

func TestGolden(t *testing.T) {
	for _, name := range goldenNames {
		for _, threads := range []int{1, 2} {
			t.Run(fmt.Sprint(name, "/threads", threads), func(t *testing.T) {
				sae := openGolden(t, name)
				file := readTensors(t, filepath.Join(golden, "encode-"+name+".safetensors"))
				x := file["activations"].activations(t)
				encoder, err := sae.NewEncoder(&EncoderOptions{Threads: threads})
				if err != nil {
					t.Fatal(err)
				}
				defer encoder.Close()
				latents, err := sae.NewLatents(x.Rows())
				if err != nil {
					t.Fatal(err)
				}
				if x.Rows() == 0 || latents.Capacity != file["indices"].Shape[1] {
					t.Fatalf("%d rows, capacity %d", x.Rows(), latents.Capacity)
				}
				if err := encoder.Encode(x, latents); err != nil {
					t.Fatal(err)
				}
				if err := sameLatents(file, latents); err != nil {
					t.Fatal(err)
				}
				want := as[float32](file["reconstruction"])
				got := make([]float32, len(want))
				if err := sae.Decode(latents, got); err != nil {
					t.Fatal(err)
				}
				for i := range want {
					if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
						t.Fatalf("reconstruction %d: %v, expected %v", i, got[i], want[i])
					}
				}
				// A comparison that could not fail would show nothing.
				latents.Values[0] += 1
				if sameLatents(file, latents) == nil {
					t.Fatal("a changed value was not noticed")
				}
			})
		}
	}
}
