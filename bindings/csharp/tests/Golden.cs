using System;
using System.Collections.Generic;
using System.IO;
using System.Text;
using System.Text.RegularExpressions;

namespace Kronsae.Tests
{
    /// <summary>A safetensors file, as far as data/golden needs it.</summary>
    internal sealed class Tensors
    {
        internal struct Tensor
        {
            internal string Dtype;
            internal int[] Shape;
            internal int Begin, End;
        }

        private readonly byte[] file;
        private readonly int data;
        private readonly Dictionary<string, Tensor> tensors = new Dictionary<string, Tensor>();

        internal Tensors(string path)
        {
            file = File.ReadAllBytes(path);
            var length = (int)BitConverter.ToUInt64(file, 0);
            data = 8 + length;
            var entry = new Regex(
                "\"([a-z_.]+)\":\\{\"dtype\":\"([A-Z0-9]+)\",\"shape\":\\[([0-9,]*)\\],\"data_offsets\":\\[([0-9]+),([0-9]+)\\]");
            foreach (Match m in entry.Matches(Encoding.UTF8.GetString(file, 8, length)))
            {
                tensors[m.Groups[1].Value] = new Tensor
                {
                    Dtype = m.Groups[2].Value,
                    Shape = Array.ConvertAll(m.Groups[3].Value.Split(','), int.Parse),
                    Begin = int.Parse(m.Groups[4].Value),
                    End = int.Parse(m.Groups[5].Value),
                };
            }
        }

        internal Tensor this[string name] => tensors[name];

        internal T[] Read<T>(string name, int size) where T : struct
        {
            var tensor = tensors[name];
            var values = new T[(tensor.End - tensor.Begin) / size];
            Buffer.BlockCopy(file, data + tensor.Begin, values, 0, tensor.End - tensor.Begin);
            return values;
        }
    }

    /// <summary>data/golden, bit for bit.</summary>
    public static class Golden
    {
        private static readonly string[] Names =
            { "kron-topk", "kron-bf16", "kron-f16", "kron-ties", "kron-threshold", "dense-topk", "dense-jumprelu" };

        /// <summary>Latents of every file, in every batch size and with threads.</summary>
        public static void EncodeIsBitForBit()
        {
            foreach (var name in Names)
            {
                var golden = Open(name, out var sae);
                using (sae)
                {
                    foreach (var threads in new[] { 1, 3 })
                    {
                        using (var encoder = sae.CreateEncoder(threads)) EncodeAll(name, golden, encoder);
                    }
                }
            }
        }

        private static void EncodeAll(string name, Tensors golden, Encoder encoder)
        {
            var rows = golden["activations"].Shape[0];
            var d = golden["activations"].Shape[1];
            var dtype = golden["activations"].Dtype;
            foreach (var batch in new[] { 1, rows })
            {
                var latents = new Latents(batch, encoder.Capacity);
                for (var at = 0; at < rows; at += batch)
                {
                    if (dtype == "F32")
                    {
                        var part = new float[batch * d];
                        Array.Copy(golden.Read<float>("activations", 4), at * d, part, 0, part.Length);
                        encoder.Encode(part, latents);
                        Compare(name, golden, latents, at, batch);
#if KRONSAE_SPAN
                        encoder.Encode(new ReadOnlySpan<float>(golden.Read<float>("activations", 4), at * d, batch * d), latents);
#endif
                    }
                    else
                    {
                        var kind = dtype == "BF16" ? Dtype.Bf16 : Dtype.F16;
                        var part = new ushort[batch * d];
                        Array.Copy(golden.Read<ushort>("activations", 2), at * d, part, 0, part.Length);
                        encoder.Encode(part, kind, latents);
                    }
                    Compare(name, golden, latents, at, batch);
                }
            }
        }

        private static void Compare(string name, Tensors golden, Latents found, int at, int rows)
        {
            var counts = golden.Read<uint>("counts", 4);
            var indices = golden.Read<uint>("indices", 4);
            var values = golden.Read<uint>("values", 4);
            var active = golden.Read<uint>("active", 4);
            var flags = golden.Read<byte>("flags", 1);
            var bits = new uint[found.Values.Length];
            Buffer.BlockCopy(found.Values, 0, bits, 0, bits.Length * 4);
            int skipped = 0, truncated = 0;
            for (var r = 0; r < rows; r++)
            {
                var what = name + " row " + (at + r);
                Want.Equal(counts[at + r], found.Counts[r], what + " count");
                Want.Equal(active[at + r], found.Active[r], what + " active");
                Want.Equal((Row)flags[at + r], found.Flags[r], what + " flags");
                skipped += (flags[at + r] & 1) != 0 ? 1 : 0;
                truncated += (flags[at + r] & 2) != 0 ? 1 : 0;
                for (var i = 0; i < counts[at + r]; i++)
                {
                    var from = (at + r) * found.Capacity + i;
                    var to = r * found.Capacity + i;
                    Want.Equal(indices[from], found.Indices[to], what + " index " + i);
                    Want.Equal(values[from], bits[to], what + " value " + i);
                }
            }
            Want.Equal(skipped, found.SkippedRows, name + " skipped");
            Want.Equal(truncated, found.TruncatedRows, name + " truncated");
        }

        /// <summary>Reconstructions of every file.</summary>
        public static void DecodeIsBitForBit()
        {
            foreach (var name in Names)
            {
                var golden = Open(name, out var sae);
                using (sae)
                {
                    var rows = golden["counts"].Shape[0];
                    var latents = new Latents(rows, sae.Info.Capacity);
                    golden.Read<uint>("counts", 4).CopyTo(latents.Counts, 0);
                    golden.Read<uint>("indices", 4).CopyTo(latents.Indices, 0);
                    golden.Read<float>("values", 4).CopyTo(latents.Values, 0);
                    var found = new float[rows * sae.Info.DModel];
                    sae.Decode(latents, rows, found);
                    var expected = golden.Read<uint>("reconstruction", 4);
                    var bits = new uint[found.Length];
                    Buffer.BlockCopy(found, 0, bits, 0, bits.Length * 4);
                    for (var i = 0; i < bits.Length; i++) Want.Equal(expected[i], bits[i], name + " element " + i);
                }
            }
        }

        /// <summary>A file opened from bytes is the same model; the kinds of the files come through.</summary>
        public static void InfoSaysWhatTheFilesAre()
        {
            foreach (var name in Names)
            {
                Open(name, out var sae);
                using (sae)
                using (var copy = Sae.Open(File.ReadAllBytes(PathOf("model-" + name))))
                {
                    var info = sae.Info;
                    Want.Equal(name.StartsWith("kron") ? EncoderKind.Kron : EncoderKind.Dense, info.Encoder, name);
                    var topk = name != "kron-threshold" && name != "dense-jumprelu";
                    Want.Equal(topk ? Selection.Topk : Selection.Threshold, info.Selection, name);
                    Want.Equal(topk ? info.K : info.MaxLatents, info.Capacity, name);
                    Want.Equal(name == "dense-jumprelu", info.HasLatentThresholds, name);
                    // binary16 weights are widened when they are loaded.
                    Want.Equal(name == "kron-bf16" ? Dtype.Bf16 : Dtype.F32, info.WeightsDtype, name);
                    Want.Equal(sae.ConfigJson, copy.ConfigJson, name);
                    Want.Equal(info, copy.Info, name);
                }
            }
        }

        internal static string PathOf(string name)
        {
            return Path.Combine(Given.Repository, "data", "golden", name + ".safetensors");
        }

        private static Tensors Open(string name, out Sae sae)
        {
            sae = Sae.Open(PathOf("model-" + name));
            return new Tensors(PathOf("encode-" + name));
        }
    }
}
