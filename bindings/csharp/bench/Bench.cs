using System;
using System.Diagnostics;
using Kronsae;

/// <summary>Nanoseconds a call, the best of several rounds: `Bench MODEL`. bindings/bench does the same from C and C++.</summary>
internal static class Bench
{
    private const int Calls = 200000, Rounds = 15;

    private static void Main(string[] arguments)
    {
        using (var sae = Sae.Open(arguments[0]))
        using (var encoder = sae.CreateEncoder())
        {
            var token = new float[encoder.DModel];
            for (var i = 0; i < token.Length; i++) token[i] = (i * 5 % 7) - 2.5f;
            var latents = encoder.CreateLatents(1);
            Print("info", () =>
            {
                for (var i = 0; i < Calls; i++) { var info = sae.Info; }
            });
            Print("encode", () =>
            {
                for (var i = 0; i < Calls; i++) encoder.Encode(token, latents);
            });
        }
    }

    private static void Print(string name, Action calls)
    {
        var best = double.MaxValue;
        for (var round = 0; round < Rounds; round++)
        {
            var watch = Stopwatch.StartNew();
            calls();
            best = Math.Min(best, watch.Elapsed.TotalMilliseconds * 1e6 / Calls);
        }
        Console.WriteLine("{0} {1:F1} ns", name, best);
    }
}
