using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>What a model is.</summary>
    public struct SaeInfo
    {
        internal kronsae_sae_info info;

        /// <summary>How pre-activations become latents.</summary>
        public EncoderKind Encoder => (EncoderKind)info.encoder_kind;
        /// <summary>Which latents are reported.</summary>
        public Selection Selection => (Selection)info.selection_kind;
        /// <summary>The encoder's weights in memory.</summary>
        public Dtype WeightsDtype => (Dtype)info.weights_dtype;
        /// <summary>Whether the model can decode and steer.</summary>
        public bool HasDecoder => info.has_decoder != 0;
        /// <summary>Whether the file knows how often and how strongly its latents fire.</summary>
        public bool HasCalibration => info.has_calibration != 0;
        /// <summary>Whether each latent has a threshold of its own.</summary>
        public bool HasLatentThresholds => info.has_latent_thresholds != 0;
        /// <summary>Quantiles of each latent's value in the calibration, or 0.</summary>
        public int CalibrationLevels => (int)info.calibration_levels;
        /// <summary>Threshold selection: latents of a larger value are active. Otherwise 0.</summary>
        public float Theta => info.theta;
        /// <summary>A latent of value v adds scale * v * decoder row to the reconstruction.</summary>
        public float OutputScale => info.output_scale;
        /// <summary>Elements of an activation vector.</summary>
        public int DModel => (int)info.d_model;
        /// <summary>F, the number of latents.</summary>
        public long Latents => (long)info.latents;
        /// <summary>Rows of the encoder matrix.</summary>
        public long EncoderRows => (long)info.encoder_rows;
        /// <summary>Number of heads; dense: 0.</summary>
        public int Heads => (int)info.heads;
        /// <summary>Base rows of a head; dense: 0.</summary>
        public int Base => (int)info.@base;
        /// <summary>Extension rows of a head; dense: 0.</summary>
        public int Extension => (int)info.extension;
        /// <summary>TopK: the most latents a token has. Threshold: 0.</summary>
        public int K => (int)info.k;
        /// <summary>Threshold: the most latents a token keeps. TopK: 0.</summary>
        public int MaxLatents => (int)info.max_latents;
        /// <summary>The capacity of <see cref="Latents"/> that never cuts anything.</summary>
        public int Capacity => (int)info.capacity;
    }

    /// <summary>
    /// A trained sparse autoencoder. Immutable: any number of threads may use one at once. Encoders keep theirs from being
    /// collected; disposing of it stops them.
    /// </summary>
    public sealed unsafe class Sae : IDisposable
    {
        internal readonly SaeHandle Handle;

        private Sae(SaeHandle handle) { Handle = handle; }

        /// <summary>Opens a model file: reads all of it into memory and validates it.</summary>
        /// <param name="path">The file.</param>
        /// <param name="encoderOnly">Leave the decoder in the file: the model can then neither decode nor steer.</param>
        /// <exception cref="KronsaeIOException">It cannot be read.</exception>
        /// <exception cref="KronsaeFormatException">It is not a valid model file.</exception>
        /// <exception cref="KronsaeLibraryException">The shared library cannot be loaded.</exception>
        public static Sae Open(string path, bool encoderOnly = false)
        {
            Library.Load();
            return OpenFile(Text.Needed(path, nameof(path)), Options(encoderOnly));
        }

        // mono binds the imports of a method when it compiles it: where one is called, the library must be loaded before.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static Sae OpenFile(byte[] path, kronsae_sae_options options)
        {
            fixed (byte* name = path)
            {
                var status = Methods.kronsae_sae_open(name, &options, out var handle, out var error);
                KronsaeException.Check(status, error);
                return new Sae(handle);
            }
        }

        /// <summary>Opens a model file held in memory, which is copied.</summary>
        /// <exception cref="KronsaeFormatException">It is not a valid model file.</exception>
        public static Sae Open(byte[] file, bool encoderOnly = false)
        {
            if (file == null) throw new ArgumentNullException(nameof(file));
            Library.Load();
            fixed (byte* data = file) return OpenBytes(data, file.Length, Options(encoderOnly));
        }

#if KRONSAE_SPAN || NETSTANDARD2_1 || NETCOREAPP2_1_OR_GREATER
        /// <summary>As above, of any memory.</summary>
        public static Sae Open(ReadOnlySpan<byte> file, bool encoderOnly = false)
        {
            Library.Load();
            fixed (byte* data = &MemoryMarshal.GetReference(file)) return OpenBytes(data, file.Length, Options(encoderOnly));
        }
#endif

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static Sae OpenBytes(byte* data, int length, kronsae_sae_options options)
        {
            byte none;
            var status = Methods.kronsae_sae_open_bytes(
                data == null ? &none : data, (UIntPtr)length, &options, out var handle, out var error);
            KronsaeException.Check(status, error);
            return new Sae(handle);
        }

        private static kronsae_sae_options Options(bool encoderOnly)
        {
            return new kronsae_sae_options
            {
                struct_size = (uint)sizeof(kronsae_sae_options),
                encoder_only = encoderOnly ? 1u : 0u,
            };
        }

        /// <summary>What the model is, asked of the library anew.</summary>
        /// <exception cref="ObjectDisposedException">It was disposed of.</exception>
        public SaeInfo Info
        {
            get
            {
                var found = new SaeInfo();
                found.info.struct_size = (uint)sizeof(kronsae_sae_info);
                int status;
                IntPtr error;
                using (var sae = new Use(Handle)) status = Methods.kronsae_sae_get_info(sae.Pointer, &found.info, &error);
                if (status != 0) KronsaeException.Check(status, error);
                return found;
            }
        }

        /// <summary>The model's config, a JSON object.</summary>
        public string ConfigJson
        {
            get
            {
                // The text is the model's: it must not be disposed of before the text is copied.
                using (new Use(Handle))
                {
                    KronsaeException.Check(Methods.kronsae_sae_config_json(Handle, out var text, out var error), error);
                    return Text.From(text);
                }
            }
        }

        /// <summary>Where the activations it was trained on came from.</summary>
        /// <param name="key">"model", "hook", "layer".</param>
        /// <returns>The text; null if the file does not say.</returns>
        public string Source(string key)
        {
            fixed (byte* name = Text.Needed(key, nameof(key)))
            {
                using (new Use(Handle))
                {
                    KronsaeException.Check(Methods.kronsae_sae_source(Handle, name, out var text, out var error), error);
                    return Text.From(text);
                }
            }
        }

        /// <summary>Makes an encoder; each thread that encodes needs one.</summary>
        /// <param name="threads">Threads of a call, the caller's included; results do not depend on it.</param>
        /// <param name="path">How results are found.</param>
        public Encoder CreateEncoder(int threads = 1, EncoderPath path = EncoderPath.Auto)
        {
            return new Encoder(this, threads, path);
        }

        /// <summary>Reconstructs activations from latents, in raw units.</summary>
        /// <param name="latents">As an encoder wrote them, or changed since.</param>
        /// <param name="rows">How many of its rows.</param>
        /// <param name="activations">Receives [rows, d_model]; may be larger.</param>
        /// <exception cref="KronsaeException">Unsupported: the model was opened encoder-only.</exception>
        public void Decode(Latents latents, int rows, float[] activations)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            fixed (float* data = activations) Decode(latents, rows, data, activations.Length);
        }

        /// <summary>Adds multiples of latents' decoder rows to activations [rows, d_model], in place.</summary>
        /// <exception cref="ArgumentException">The length is no multiple of d_model.</exception>
        /// <exception cref="KronsaeArgumentException">A latent that there is not, a coefficient that is not finite.</exception>
        public void Steer(float[] activations, SteerTerm[] terms)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (terms == null) throw new ArgumentNullException(nameof(terms));
            fixed (float* data = activations)
            fixed (SteerTerm* first = terms) Steer(data, Dtype.F32, activations.Length, first, terms.Length);
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public void Steer(ushort[] activations, Dtype dtype, SteerTerm[] terms)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (terms == null) throw new ArgumentNullException(nameof(terms));
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = activations)
            fixed (SteerTerm* first = terms) Steer(data, dtype, activations.Length, first, terms.Length);
        }

#if KRONSAE_SPAN || NETSTANDARD2_1 || NETCOREAPP2_1_OR_GREATER
        /// <summary>Reconstructs activations into any memory.</summary>
        public void Decode(Latents latents, int rows, Span<float> activations)
        {
            fixed (float* data = &MemoryMarshal.GetReference(activations)) Decode(latents, rows, data, activations.Length);
        }

        /// <summary>As above, of memory that outlives the caller's stack frame.</summary>
        public void Decode(Latents latents, int rows, Memory<float> activations) { Decode(latents, rows, activations.Span); }

        /// <summary>Steers any memory.</summary>
        public void Steer(Span<float> activations, ReadOnlySpan<SteerTerm> terms)
        {
            fixed (float* data = &MemoryMarshal.GetReference(activations))
            fixed (SteerTerm* first = &MemoryMarshal.GetReference(terms))
            {
                Steer(data, Dtype.F32, activations.Length, first, terms.Length);
            }
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public void Steer(Span<ushort> activations, Dtype dtype, ReadOnlySpan<SteerTerm> terms)
        {
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = &MemoryMarshal.GetReference(activations))
            fixed (SteerTerm* first = &MemoryMarshal.GetReference(terms))
            {
                Steer(data, dtype, activations.Length, first, terms.Length);
            }
        }

        /// <summary>As above, of memory that outlives the caller's stack frame.</summary>
        public void Steer(Memory<float> activations, ReadOnlyMemory<SteerTerm> terms) { Steer(activations.Span, terms.Span); }
#endif

        private void Decode(Latents latents, int rows, float* data, int length)
        {
            if (latents == null) throw new ArgumentNullException(nameof(latents));
            var d = Info.DModel;
            if (rows < 0 || rows > latents.Rows) throw Latents.WrongRows(rows, latents.Rows);
            if (length / d < rows)
            {
                throw new ArgumentException("has " + length + " elements, " + rows + " rows of " + d + " need more", "activations");
            }
            fixed (uint* counts = latents.Counts, indices = latents.Indices)
            fixed (float* values = latents.Values)
            {
                kronsae_latents sparse;
                latents.Native(&sparse, counts, indices, values, null, null);
                var dense = new kronsae_activations_mut
                {
                    struct_size = (uint)sizeof(kronsae_activations_mut),
                    dtype = (int)Dtype.F32,
                    data = data,
                    rows = (UIntPtr)rows,
                    d_model = (UIntPtr)d,
                };
                KronsaeException.Check(Methods.kronsae_decode(Handle, &sparse, &dense, out var error), error);
            }
        }

        private void Steer(void* data, Dtype dtype, int length, SteerTerm* terms, int count)
        {
            var d = Info.DModel;
            var dense = new kronsae_activations_mut
            {
                struct_size = (uint)sizeof(kronsae_activations_mut),
                dtype = (int)dtype,
                data = data,
                rows = (UIntPtr)Encoder.RowsOf(length, d),
                d_model = (UIntPtr)d,
            };
            var status = Methods.kronsae_steer(
                Handle, &dense, terms, (UIntPtr)count, (UIntPtr)sizeof(SteerTerm), out var error);
            KronsaeException.Check(status, error);
        }

        /// <summary>Frees the model when no call uses it any more. Doing so again is no error.</summary>
        public void Dispose() { Handle.Dispose(); }
    }
}
