package kronsae_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	kronsae "github.com/kronsae/kronsae/bindings/go"
	"github.com/kronsae/kronsae/bindings/go/internal/cloop"
)

// tinyModel writes a model of d 16 and 4 heads (base 2, extension 2), small enough that the way into the library shows.
func tinyModel(t testing.TB) string {
	t.Helper()
	var offset int
	var tensors []string
	var data []byte
	for _, one := range []struct {
		name  string
		shape []int
	}{{"encoder.weight", []int{16, 16}}, {"encoder.bias", []int{16}}, {"decoder.weight", []int{16, 16}}, {"decoder.bias", []int{16}}} {
		n := 1
		for _, extent := range one.shape {
			n *= extent
		}
		shape := strings.Join(strings.Fields(fmt.Sprint(one.shape)), ",")
		tensors = append(tensors, fmt.Sprintf("%q:{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%d,%d]}", one.name, shape, offset, offset+4*n))
		offset += 4 * n
		for i := range n {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(math.Sin(float64(i+1)))))
		}
	}
	config := `{\"encoder\":\"kron\",\"d_model\":16,\"heads\":4,\"base\":2,\"extension\":2,\"selection\":{\"topk\":4},\"output_scale\":1.0}`
	header := `{"__metadata__":{"format":"kronsae/1","config":"` + config + `"},` + strings.Join(tensors, ",") + "}"
	for len(header)%8 != 0 {
		header += " "
	}
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	path := filepath.Join(t.TempDir(), "tiny.safetensors")
	if err := os.WriteFile(path, append(file, data...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func BenchmarkInfo(b *testing.B) {
	path := tinyModel(b)
	b.Run("c", func(b *testing.B) {
		if !cloop.Info(path, b.N) {
			b.Fatal("a call failed")
		}
	})
	b.Run("go", func(b *testing.B) {
		sae, err := kronsae.Open(path, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer sae.Close()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := sae.Info(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	path, token := tinyModel(b), make([]float32, 16)
	for i := range token {
		token[i] = float32(i%5) - 1
	}
	b.Run("c", func(b *testing.B) {
		if !cloop.Encode(path, token, 4, b.N) {
			b.Fatal("a call failed")
		}
	})
	b.Run("go", func(b *testing.B) {
		sae, err := kronsae.Open(path, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer sae.Close()
		encoder, err := sae.NewEncoder(nil)
		if err != nil {
			b.Fatal(err)
		}
		defer encoder.Close()
		x, latents := kronsae.Float32(token, 16), kronsae.NewLatents(1, 4)
		b.ReportAllocs()
		for b.Loop() {
			if err := encoder.Encode(x, latents); err != nil {
				b.Fatal(err)
			}
		}
	})
}
