#if KRONSAE_SPAN
using System;
using System.Linq;

namespace Kronsae.Tests
{
    /// <summary>Every form that takes memory gives what the array form gives, also of a part of a larger block.</summary>
    public static class Spans
    {
        /// <summary>The upper halves of the floats, which here are exact.</summary>
        private static ushort[] Bf16(float[] values)
        {
            var bits = new byte[4 * values.Length];
            Buffer.BlockCopy(values, 0, bits, 0, bits.Length);
            return Enumerable.Range(0, values.Length).Select(i => (ushort)(bits[4 * i + 2] | bits[4 * i + 3] << 8)).ToArray();
        }

        /// <summary>The same between two elements that must not be looked at.</summary>
        private static Memory<T> Inside<T>(T[] values)
        {
            var wide = new T[values.Length + 2];
            values.CopyTo(wide, 1);
            return new Memory<T>(wide, 1, values.Length);
        }

        private static void IsRight(Latents found)
        {
            Want.True(found.IndicesOf(0).ToArray().SequenceEqual(new uint[] { 0, 5, 2 }), "latents");
            Want.Equal(6.0f, found.ValuesOf(0)[0], "value");
            Array.Clear(found.Counts, 0, 1);
        }

        public static void Encoding()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var encoder = sae.CreateEncoder())
            {
                var room = encoder.CreateLatents(1);
                var halves = Bf16(Arguments.Residual);
                encoder.Encode(halves, Dtype.Bf16, room);
                IsRight(room);
                encoder.Encode((ReadOnlySpan<float>)Inside(Arguments.Residual).Span, room);
                IsRight(room);
                encoder.Encode((ReadOnlyMemory<float>)Inside(Arguments.Residual), room);
                IsRight(room);
                encoder.Encode((ReadOnlySpan<ushort>)Inside(halves).Span, Dtype.Bf16, room);
                IsRight(room);
                encoder.Encode((ReadOnlyMemory<ushort>)Inside(halves), Dtype.Bf16, room);
                IsRight(room);
                OnTheStack(encoder, room);
                IsRight(room);
                Want.Throws<ArgumentException>(() => encoder.Encode(new ReadOnlyMemory<float>(new float[9]), room), "9 elements");
                Want.Throws<ArgumentException>(() => encoder.Encode(new ReadOnlyMemory<ushort>(halves), Dtype.F32, room));
            }
        }

        private static unsafe void OnTheStack(Encoder encoder, Latents room)
        {
            var first = stackalloc float[8];
            var token = new Span<float>(first, 8);
            Arguments.Residual.CopyTo(token);
            encoder.Encode(token, room);
        }

        public static void DecodingSteeringOpening()
        {
            var file = System.IO.File.ReadAllBytes(Given.Model("tiny"));
            using (var sae = Sae.Open((ReadOnlySpan<byte>)Inside(file).Span))
            using (var encoder = sae.CreateEncoder())
            {
                Want.Throws<KronsaeException>(() => Sae.Open(default(ReadOnlySpan<byte>)));
                var room = encoder.CreateLatents(1);
                encoder.Encode(Arguments.Residual, room);
                var expected = new float[8];
                sae.Decode(room, 1, expected);
                var terms = new[] { new SteerTerm { Latent = 7, Coefficient = 0.25f } };
                var found = Inside(new float[8]);
                sae.Decode(room, 1, found.Span);
                Want.True(found.Span.SequenceEqual(expected), "decoded into a span");
                found = Inside(new float[8]);
                sae.Decode(room, 1, found);
                Want.True(found.Span.SequenceEqual(expected), "decoded into memory");
                Want.Throws<ArgumentException>(() => sae.Decode(room, 1, new Memory<float>(new float[7])), "7 elements");
                sae.Steer(expected, terms);
                sae.Steer(found.Span, terms);
                Want.True(found.Span.SequenceEqual(expected), "a steered span");
                sae.Steer(found, terms);
                sae.Steer(expected, terms);
                Want.True(found.Span.SequenceEqual(expected), "steered memory");
                var halves = Bf16(Arguments.Residual);
                var half = Inside(halves);
                sae.Steer(halves, Dtype.Bf16, terms);
                sae.Steer(half.Span, Dtype.Bf16, terms);
                Want.True(half.Span.SequenceEqual(halves), "steered halves");
                Want.True(!halves.SequenceEqual(Bf16(Arguments.Residual)), "nothing was steered");
                sae.Steer(default(Span<float>), default(ReadOnlySpan<SteerTerm>));
            }
        }

        public static void Tapping()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var monitor = new Monitor())
            using (var tap = new Tap(monitor, monitor.AddSite("a", sae)))
            {
                var tags = Inside(new[] { new TokenTag(1, 0) });
                var halves = Bf16(Arguments.Residual);
                Want.Equal(1, tap.Submit(Arguments.Residual, new[] { new TokenTag(1, 0) }), "array");
                Want.Equal(1, tap.Submit(halves, Dtype.Bf16, new[] { new TokenTag(1, 0) }), "array of halves");
                Want.Equal(1, tap.Submit(Inside(Arguments.Residual).Span, tags.Span), "span");
                Want.Equal(1, tap.Submit(Inside(halves).Span, Dtype.Bf16, tags.Span), "span of halves");
                Want.Equal(1, tap.Submit(Inside(Arguments.Residual), tags), "memory");
                Want.Equal(1, tap.Submit(Inside(halves), Dtype.Bf16, tags), "memory of halves");
                Want.Equal(0, tap.Submit(default(ReadOnlySpan<float>), default(ReadOnlySpan<TokenTag>)), "nothing");
                Want.Throws<ArgumentException>(() => tap.Submit(Inside(Arguments.Residual), new TokenTag[2]), "2 tags");
                Want.Throws<ArgumentException>(() => tap.Submit(Inside(halves), Dtype.F32, tags));
                var room = new Latents(1, sae.Info.Capacity);
                Want.Equal(1, tap.Encode(halves, Dtype.Bf16, new[] { new TokenTag(1, 0) }, room), "queued");
                IsRight(room);
                tap.Encode(Inside(Arguments.Residual).Span, tags.Span, room);
                IsRight(room);
                tap.Encode(Inside(halves).Span, Dtype.Bf16, tags.Span, room);
                IsRight(room);
                tap.Encode(Inside(Arguments.Residual), tags, room);
                IsRight(room);
                tap.Encode(Inside(halves), Dtype.Bf16, tags, room);
                IsRight(room);
                monitor.Flush(10000);
                Want.Equal(11ul, monitor.Status.Encoded, "all were encoded");
            }
        }
    }
}
#endif
