using System;
using System.IO;
using System.Runtime.InteropServices;

namespace Kronsae.Tests
{
    /// <summary>What a confused caller passes: an exception each time, and the object goes on working.</summary>
    public static class Arguments
    {
        // Latent 0 of examples/make_model.rs's tiny model is sqrt(4 * 9).
        internal static readonly float[] Residual = { 4, 1, 9, 0, 1, 0, 1, 16 };

        public static void LengthsAndNulls()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var encoder = sae.CreateEncoder())
            {
                var room = encoder.CreateLatents(2);
                Want.Throws<ArgumentNullException>(() => Sae.Open((string)null));
                Want.Throws<ArgumentNullException>(() => Sae.Open((byte[])null));
                Want.Throws<ArgumentNullException>(() => encoder.Encode((float[])null, room));
                Want.Throws<ArgumentNullException>(() => encoder.Encode(Residual, null));
                Want.Throws<ArgumentException>(() => encoder.Encode(new float[9], room), "9 elements");
                Want.Throws<KronsaeArgumentException>(() => encoder.Encode(new float[24], room));
                Want.Throws<KronsaeArgumentException>(() => encoder.Encode(Residual, new Latents(1, 2)), "capacity");
                Want.Throws<ArgumentException>(() => encoder.Encode(new ushort[8], Dtype.F32, room));
                Want.Throws<KronsaeArgumentException>(() => encoder.Encode(IntPtr.Zero, Dtype.F32, 1, 0, room));
                Want.Throws<ArgumentOutOfRangeException>(() => encoder.Encode(IntPtr.Zero, Dtype.F32, -1, 0, room));
                Want.Throws<ArgumentOutOfRangeException>(() => new Latents(-1, 3));
                Want.Throws<ArgumentException>(() => sae.Decode(room, 3, new float[24]));
                Want.Throws<ArgumentException>(() => sae.Decode(room, 2, new float[15]));
                Want.Throws<KronsaeArgumentException>(() => sae.Steer(new float[8], new[] { new SteerTerm { Latent = 8 } }));
                Want.Throws<ArgumentNullException>(() => sae.Steer(new float[8], null));
                Want.Throws<KronsaeArgumentException>(() => sae.CreateEncoder(100000));
                encoder.Encode(Residual, room);
                Want.Equal(6.0f, room.Values[Array.IndexOf(room.Indices, 0u)], "latent 0");
            }
        }

        /// <summary>Exact paths agree, an unknown one is refused; asking for AMX succeeds or says why not.</summary>
        public static void Paths()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            {
                foreach (var path in new[] { EncoderPath.Auto, EncoderPath.Plain, EncoderPath.Screened, EncoderPath.Fast })
                {
                    using (var encoder = sae.CreateEncoder(1, path))
                    {
                        var room = encoder.CreateLatents(1);
                        encoder.Encode(Residual, room);
                        if (path != EncoderPath.Fast) Want.Equal(6.0f, room.Values[0], path.ToString());
                    }
                }
                Want.Throws<KronsaeArgumentException>(() => sae.CreateEncoder(1, (EncoderPath)99));
            }
            try
            {
                Library.RequestAmx();
            }
            catch (KronsaeException e)
            {
                Want.Equal(Status.Unsupported, e.Status, "status");
            }
        }

        /// <summary>No rows are no error, in whatever form they come.</summary>
        public static void EmptyArrays()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var encoder = sae.CreateEncoder())
            {
                encoder.Encode(new float[0], new Latents(0, encoder.Capacity));
                encoder.Encode(new ushort[0], Dtype.Bf16, encoder.CreateLatents(1));
                encoder.Encode(IntPtr.Zero, Dtype.F32, 0, 0, encoder.CreateLatents(1));
#if KRONSAE_SPAN
                encoder.Encode(default(ReadOnlySpan<float>), encoder.CreateLatents(1));
#endif
                sae.Steer(new float[0], new SteerTerm[0]);
                var copy = (float[])Residual.Clone();
                sae.Steer(copy, new SteerTerm[0]);
                Want.Equal(Residual[7], copy[7], "steered by nothing");
            }
        }

        /// <summary>A dtype that nobody knows reaches the library and comes back as its refusal.</summary>
        public static void UnknownDtype()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var encoder = sae.CreateEncoder())
            {
                var pinned = GCHandle.Alloc(Residual, GCHandleType.Pinned);
                try
                {
                    var at = pinned.AddrOfPinnedObject();
                    var room = encoder.CreateLatents(1);
                    Want.Throws<KronsaeArgumentException>(() => encoder.Encode(at, (Dtype)77, 1, 0, room), "77");
                    encoder.Encode(at, Dtype.F32, 1, 0, room);
                    Want.Equal(3u, room.Counts[0], "pinned memory");
                }
                finally
                {
                    pinned.Free();
                }
            }
        }

        public static void FilesThatAreNone()
        {
            var missing = Want.Throws<KronsaeIOException>(() => Sae.Open("/nowhere/é.safetensors"), "é");
            Want.Equal(Status.Io, missing.Status, "missing file");
            Want.Throws<KronsaeFormatException>(() => Sae.Open(new byte[0]));
            Want.Throws<KronsaeFormatException>(() => Sae.Open(new byte[100]));
            Want.Throws<KronsaeFormatException>(() => Sae.Open(Path.Combine(Given.Repository, "README.md")));
            Want.Throws<ArgumentException>(() => Sae.Open("a\0b"), "NUL");
        }

        public static void SteerAndDecodeByHand()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var bare = Sae.Open(Given.Model("tiny"), encoderOnly: true))
            {
                Want.Equal("15", sae.Source("layer"), "source");
                Want.Equal(null, sae.Source("nothing"), "source");
                Want.True(!bare.Info.HasDecoder, "encoder only");
                var x = new float[16];
                sae.Steer(x, new[] { new SteerTerm { Latent = 5, Coefficient = 1.5f } });
                // The output scale is 2 and decoder row 5 the unit vector 5.
                for (var i = 0; i < 16; i++) Want.Equal(i % 8 == 5 ? 3.0f : 0.0f, x[i], "steered " + i);
                var half = new ushort[8];
                sae.Steer(half, Dtype.F16, new[] { new SteerTerm { Latent = 1, Coefficient = 0.5f } });
                Want.Equal((ushort)0x3C00, half[1], "1.0 as binary16");
                var refused = Want.Throws<KronsaeException>(() => bare.Steer(x, new SteerTerm[0]));
                Want.Equal(Status.Unsupported, refused.Status, "without a decoder");
            }
        }
    }
}
