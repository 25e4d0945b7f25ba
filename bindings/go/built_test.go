package kronsae

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The README's program is compiled and run as it stands, in a module of its own.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```go\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("README.md has no Go program")
	}
	// The short way to latents is what it shows.
	_, body, _ := strings.Cut(string(block[1]), "func main() {\n")
	if lines := strings.Count(strings.ReplaceAll(body, "\t}\n", ""), "\n\t"); lines >= 10 {
		t.Errorf("README.md's program has %d lines in main, expected under ten", lines)
	}
	here, _ := filepath.Abs(".")
	model, _ := filepath.Abs(filepath.Join(golden, "model-kron-topk.safetensors"))
	folder := t.TempDir()
	module := "module newcomer\n\ngo 1.24\n\nrequire github.com/kronsae/kronsae/bindings/go v0.0.0\n\n" +
		"replace github.com/kronsae/kronsae/bindings/go => " + here + "\n"
	if err := errors.Join(os.WriteFile(filepath.Join(folder, "main.go"), block[1], 0o600),
		os.WriteFile(filepath.Join(folder, "go.mod"), []byte(module), 0o600)); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("go", "run", ".", model)
	command.Dir = folder
	output, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(output), "fires at") {
		t.Fatal(string(output), err)
	}
}

// Run again by TestOtherABI, over a library of another ABI version.
func TestMain(m *testing.M) {
	if os.Getenv("KRONSAE_TEST_ABI") == "" {
		os.Exit(m.Run())
	}
	_, opened := Open("x", nil)
	_, bytes := OpenBytes(nil, nil)
	_, made := NewMonitor(nil)
	for _, err := range []error{Check(), opened, bytes, made} {
		var abi *ABIError
		if !errors.As(err, &abi) {
			fmt.Println("no ABIError:", err)
			os.Exit(1)
		}
		fmt.Println(abi.Found, abi.Expected, abi.Version, abi.Path, abi)
	}
}

func TestOtherABI(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no cc")
	}
	header, err := os.ReadFile("../../include/kronsae.h")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	source.WriteString("unsigned kronsae_abi_version(void) { return 77; }\nconst char *kronsae_version_string(void) { return \"9.8.7\"; }\n")
	seen := map[string]bool{"kronsae_abi_version": true, "kronsae_version_string": true}
	for _, match := range regexp.MustCompile(`(?m)^\w[^#\n*/]*[ *](kronsae_\w+)\(`).FindAllStringSubmatch(string(header), -1) {
		if !seen[match[1]] {
			seen[match[1]] = true
			fmt.Fprintf(&source, "void %s(void) { __builtin_trap(); }\n", match[1])
		}
	}
	folder := t.TempDir()
	file, library := filepath.Join(folder, "other.c"), filepath.Join(folder, "libkronsae.so.0")
	if err := os.WriteFile(file, []byte(source.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command(cc, "-shared", "-fPIC", "-Wl,-soname,libkronsae.so.0", "-o", library, file).CombinedOutput(); err != nil {
		t.Fatal(string(output), err)
	}
	run := func(path string) (string, error) {
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), "KRONSAE_TEST_ABI=1", "LD_LIBRARY_PATH="+path)
		output, err := command.CombinedOutput()
		return string(output), err
	}
	output, err := run(folder)
	if err != nil || strings.Count(output, "77 0 9.8.7 "+library) != 4 || !strings.Contains(output, "expected 0") {
		t.Fatal(output, err)
	}
	// A missing one is named by the system's loader before any Go runs.
	if output, err := run(t.TempDir()); err == nil || !strings.Contains(output, "libkronsae.so.0") {
		if strings.Contains(output, "no ABIError") {
			t.Skip("the library is in the system's folders, too")
		}
		t.Fatal(output, err)
	}
}
