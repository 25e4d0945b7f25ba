using Kronsae;

static class Example
{
    static void Main(string[] arguments)
    {
        using (var sae = Sae.Open(arguments[0]))
        using (var encoder = sae.CreateEncoder())
        {
            var latents = encoder.CreateLatents(rows: 1);
            var token = new float[encoder.DModel]; // from your model's residual stream
            for (var i = 0; i < token.Length; i++) token[i] = 0.01f * (i + 1);
            encoder.Encode(token, latents);
            for (var i = 0; i < latents.Counts[0]; i++)
                System.Console.WriteLine("latent {0} fires at {1}", latents.Indices[i], latents.Values[i]);
        }
    }
}
