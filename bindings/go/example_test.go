package kronsae_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	kronsae "github.com/kronsae/kronsae/bindings/go"
)

const model = "../../data/golden/model-kron-topk.safetensors"

func Example() {
	sae, err := kronsae.Open(model, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer sae.Close()
	encoder, err := sae.NewEncoder(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer encoder.Close()
	latents, err := sae.NewLatents(1)
	if err != nil {
		log.Fatal(err)
	}
	token := make([]float32, 20)
	token[0], token[3] = 1, -2
	if err := encoder.Encode(kronsae.Float32(token, 20), latents); err != nil {
		log.Fatal(err)
	}
	fmt.Println(latents.Counts[0] <= 5)
	// Output: true
}

func ExampleOpen_errors() {
	_, err := kronsae.Open("no/such/model.safetensors", nil)
	fmt.Println(errors.Is(err, kronsae.StatusIO))
	// Output: true
}

func ExampleMonitor_Events() {
	monitor, err := kronsae.NewMonitor(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer monitor.Close()
	sae, err := kronsae.Open("../../data/golden/model-dense-topk.safetensors", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer sae.Close()
	site, err := monitor.AddSite(kronsae.SiteOptions{Name: "residual"}, sae)
	if err != nil {
		log.Fatal(err)
	}
	tap, err := site.NewTap(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tap.Close()

	// The strongest latent of a token, to write a rule that it matches.
	token, tags := make([]float32, 24), []kronsae.TokenTag{{Request: 7, Position: 0, Token: -1}}
	token[1] = 3
	latents := kronsae.NewLatents(1, 7)
	if _, err := tap.Encode(kronsae.Float32(token, 24), tags, latents); err != nil {
		log.Fatal(err)
	}
	if err := monitor.Flush(context.Background()); err != nil {
		log.Fatal(err)
	}
	rule := fmt.Sprintf("[[rule]]\nname = \"seen\"\nwhen = { latent = %d, above = 0.0 }\n", latents.Indices[0])
	if err := monitor.SetRules(rule); err != nil {
		log.Fatal(err)
	}
	tags[0].Position = 1
	if _, err := tap.Submit(kronsae.Float32(token, 24), tags); err != nil {
		log.Fatal(err)
	}
	for event, err := range monitor.Events(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: request %d, position %d\n", event.Rule, event.Request, event.Position)
		break
	}
	// Output: seen: request 7, position 1
}
