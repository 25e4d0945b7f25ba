using System;
using System.Runtime.InteropServices;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>
    /// Turns activations into sparse latents. One thread at a time: make one for each thread that encodes. Calls allocate
    /// nothing once there was one of as many rows.
    /// </summary>
    public sealed unsafe class Encoder : IDisposable
    {
        internal readonly EncoderHandle Handle;
        // A model that is collected is destroyed, which would stop this encoder.
        private readonly Sae sae;

        internal Encoder(Sae sae, int threads, EncoderPath path)
        {
            if (threads < 0) throw new ArgumentOutOfRangeException(nameof(threads), threads, "is negative");
            this.sae = sae;
            var info = sae.Info;
            DModel = info.DModel;
            Capacity = info.Capacity;
            var options = new kronsae_encoder_options
            {
                struct_size = (uint)sizeof(kronsae_encoder_options),
                threads = (uint)threads,
                path = (int)path,
            };
            var status = Methods.kronsae_encoder_create(sae.Handle, &options, out var handle, out var error);
            KronsaeException.Check(status, error);
            Handle = handle;
        }

        /// <summary>Elements of an activation vector.</summary>
        public int DModel { get; }

        /// <summary>Entries a row that never cut anything.</summary>
        public int Capacity { get; }

        /// <summary>The model.</summary>
        public Sae Sae => sae;

        /// <summary>Buffers for so many rows.</summary>
        public Latents CreateLatents(int rows) { return new Latents(rows, Capacity); }

        /// <summary>Encodes activations [rows, d_model], raw as the LLM computes them.</summary>
        /// <exception cref="ArgumentException">The length is no multiple of d_model.</exception>
        /// <exception cref="KronsaeArgumentException">latents has too few rows or too small a capacity; another thread is in a
        /// call.</exception>
        /// <exception cref="KronsaeStoppedException">The model was disposed of.</exception>
        public void Encode(float[] activations, Latents latents)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            fixed (float* data = activations) Encode(data, Dtype.F32, RowsOf(activations.Length, DModel), 0, latents);
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public void Encode(ushort[] activations, Dtype dtype, Latents latents)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            TwoBytes(dtype);
            fixed (ushort* data = activations) Encode(data, dtype, RowsOf(activations.Length, DModel), 0, latents);
        }

#if KRONSAE_SPAN || NETSTANDARD2_1 || NETCOREAPP2_1_OR_GREATER
        /// <summary>As above, of any memory.</summary>
        public void Encode(ReadOnlySpan<float> activations, Latents latents)
        {
            fixed (float* data = &MemoryMarshal.GetReference(activations))
            {
                Encode(data, Dtype.F32, RowsOf(activations.Length, DModel), 0, latents);
            }
        }

        /// <summary>As above, of any memory.</summary>
        public void Encode(ReadOnlySpan<ushort> activations, Dtype dtype, Latents latents)
        {
            TwoBytes(dtype);
            fixed (ushort* data = &MemoryMarshal.GetReference(activations))
            {
                Encode(data, dtype, RowsOf(activations.Length, DModel), 0, latents);
            }
        }

        /// <summary>As above, of memory that outlives the caller's stack frame.</summary>
        public void Encode(ReadOnlyMemory<float> activations, Latents latents) { Encode(activations.Span, latents); }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public void Encode(ReadOnlyMemory<ushort> activations, Dtype dtype, Latents latents)
        {
            Encode(activations.Span, dtype, latents);
        }
#endif

        /// <summary>Encodes memory outside of the runtime's heap, or pinned.</summary>
        /// <param name="activations">The first row; it and all rows must stay readable during the call, or the process may
        /// crash.</param>
        /// <param name="dtype">Its elements.</param>
        /// <param name="rows">Rows (tokens).</param>
        /// <param name="rowStride">Bytes from a row to the next; 0: contiguous.</param>
        /// <param name="latents">Receives the latents.</param>
        public void Encode(IntPtr activations, Dtype dtype, int rows, long rowStride, Latents latents)
        {
            if (rows < 0) throw new ArgumentOutOfRangeException(nameof(rows), rows, "is negative");
            if (rowStride < 0) throw new ArgumentOutOfRangeException(nameof(rowStride), rowStride, "is negative");
            Encode((void*)activations, dtype, rows, rowStride, latents);
        }

        private void Encode(void* data, Dtype dtype, int rows, long rowStride, Latents latents)
        {
            if (latents == null) throw new ArgumentNullException(nameof(latents));
            kronsae_activations dense;
            Activations(&dense, data, dtype, rows, DModel, rowStride);
            fixed (uint* counts = latents.Counts, indices = latents.Indices, active = latents.Active)
            fixed (float* values = latents.Values)
            fixed (Row* flags = latents.Flags)
            {
                // An empty array has no address, and the library wants one.
                uint none;
                kronsae_latents sparse;
                latents.Native(
                    &sparse, counts == null ? &none : counts, indices == null ? &none : indices,
                    values == null ? (float*)&none : values, active, flags);
                int status;
                IntPtr error;
                using (var encoder = new Use(Handle)) status = Methods.kronsae_encode(encoder.Pointer, &dense, &sparse, &error);
                // Until here, for a model that is collected stops this encoder.
                GC.KeepAlive(sae);
                if (status != 0) KronsaeException.Check(status, error);
                latents.SkippedRows = (int)sparse.skipped_rows;
                latents.TruncatedRows = (int)sparse.truncated_rows;
            }
        }

        internal static void Activations(
            kronsae_activations* to, void* data, Dtype dtype, int rows, int dModel, long rowStride)
        {
            to->struct_size = (uint)sizeof(kronsae_activations);
            to->dtype = (int)dtype;
            to->data = data;
            to->rows = (UIntPtr)rows;
            to->d_model = (UIntPtr)dModel;
            to->row_stride = (UIntPtr)(ulong)rowStride;
        }

        internal static int RowsOf(int length, int dModel)
        {
            // One token, as most calls have it, without a division.
            if (length == dModel) return 1;
            var rows = length / dModel;
            if (rows * dModel != length)
            {
                throw new ArgumentException(
                    "there are " + length + " elements, which is no multiple of the model's d_model, " + dModel);
            }
            return rows;
        }

        internal static void TwoBytes(Dtype dtype)
        {
            if (dtype != Dtype.F16 && dtype != Dtype.Bf16)
            {
                throw new ArgumentException(
                    "is " + dtype + ": elements of two bytes are Dtype.F16 or Dtype.Bf16", nameof(dtype));
            }
        }

        /// <summary>Frees the encoder when no call uses it any more. Doing so again is no error.</summary>
        public void Dispose() { Handle.Dispose(); }
    }
}
