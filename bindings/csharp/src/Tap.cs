using System;
using System.Runtime.InteropServices;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>
    /// Where a serving thread hands activations to a monitor. One thread at a time: make one for each. Submit, EndRequest and
    /// Rewind wait for nothing and allocate nothing.
    /// </summary>
    public sealed unsafe class Tap : IDisposable
    {
        internal readonly TapHandle Handle;
        // A monitor that is collected is destroyed, which would stop this tap.
        private readonly Monitor monitor;

        /// <summary>Makes a tap at a site of a monitor: allocates its queue.</summary>
        /// <param name="monitor">The monitor.</param>
        /// <param name="site">One of its sites.</param>
        /// <param name="sampling">Which tokens are encoded.</param>
        /// <param name="nth">With EveryNth: n. Otherwise 0.</param>
        /// <param name="widest">The widest elements that will be submitted.</param>
        /// <param name="capacity">Tokens the queue has room for; 0: 1024.</param>
        /// <param name="controls">Ends of requests and rewinds it has room for besides; 0: 1024.</param>
        public Tap(
            Monitor monitor, Site site, Sampling sampling = Sampling.Every, uint nth = 0, Dtype widest = Dtype.F32,
            int capacity = 0, int controls = 0)
        {
            if (monitor == null) throw new ArgumentNullException(nameof(monitor));
            if (site == null) throw new ArgumentNullException(nameof(site));
            if (capacity < 0) throw new ArgumentOutOfRangeException(nameof(capacity), capacity, "is negative");
            if (controls < 0) throw new ArgumentOutOfRangeException(nameof(controls), controls, "is negative");
            this.monitor = monitor;
            DModel = site.DModel;
            var options = new kronsae_tap_options
            {
                struct_size = (uint)sizeof(kronsae_tap_options),
                sampling = (int)sampling,
                nth = nth,
                dtype = (int)widest,
                capacity = (UIntPtr)capacity,
                controls = (UIntPtr)controls,
            };
            var status = Methods.kronsae_tap_create(monitor.Handle, site.Number, &options, out Handle, out var error);
            KronsaeException.Check(status, error);
        }

        /// <summary>Elements of an activation vector.</summary>
        public int DModel { get; }

        /// <summary>The monitor.</summary>
        public Monitor Monitor => monitor;

        /// <summary>Hands over activations [rows, d_model] and a tag for each row.</summary>
        /// <returns>How many rows were queued; the others are counted.</returns>
        /// <exception cref="ArgumentException">Lengths that do not fit each other.</exception>
        /// <exception cref="KronsaeStoppedException">The monitor was stopped or disposed of.</exception>
        public int Submit(float[] activations, TokenTag[] tags)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (tags == null) throw new ArgumentNullException(nameof(tags));
            fixed (float* data = activations)
            fixed (TokenTag* first = tags)
            {
                return Submit(data, Dtype.F32, activations.Length, first, tags.Length);
            }
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Submit(ushort[] activations, Dtype dtype, TokenTag[] tags)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (tags == null) throw new ArgumentNullException(nameof(tags));
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = activations)
            fixed (TokenTag* first = tags)
            {
                return Submit(data, dtype, activations.Length, first, tags.Length);
            }
        }

        /// <summary>Encodes on the calling thread, and hands the result to the monitor, too.</summary>
        /// <returns>How many rows were queued for the monitor; all of them are encoded.</returns>
        /// <exception cref="KronsaeException">As Submit and Encoder.Encode; the site has no model.</exception>
        public int Encode(float[] activations, TokenTag[] tags, Latents latents)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (tags == null) throw new ArgumentNullException(nameof(tags));
            fixed (float* data = activations)
            fixed (TokenTag* first = tags)
            {
                return Encode(data, Dtype.F32, activations.Length, first, tags.Length, latents);
            }
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Encode(ushort[] activations, Dtype dtype, TokenTag[] tags, Latents latents)
        {
            if (activations == null) throw new ArgumentNullException(nameof(activations));
            if (tags == null) throw new ArgumentNullException(nameof(tags));
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = activations)
            fixed (TokenTag* first = tags)
            {
                return Encode(data, dtype, activations.Length, first, tags.Length, latents);
            }
        }

#if KRONSAE_SPAN || NETSTANDARD2_1 || NETCOREAPP2_1_OR_GREATER
        /// <summary>Hands over any memory.</summary>
        public int Submit(ReadOnlySpan<float> activations, ReadOnlySpan<TokenTag> tags)
        {
            fixed (float* data = &MemoryMarshal.GetReference(activations))
            fixed (TokenTag* first = &MemoryMarshal.GetReference(tags))
            {
                return Submit(data, Dtype.F32, activations.Length, first, tags.Length);
            }
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Submit(ReadOnlySpan<ushort> activations, Dtype dtype, ReadOnlySpan<TokenTag> tags)
        {
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = &MemoryMarshal.GetReference(activations))
            fixed (TokenTag* first = &MemoryMarshal.GetReference(tags))
            {
                return Submit(data, dtype, activations.Length, first, tags.Length);
            }
        }

        /// <summary>As above, of memory that outlives the caller's stack frame.</summary>
        public int Submit(ReadOnlyMemory<float> activations, ReadOnlyMemory<TokenTag> tags)
        {
            return Submit(activations.Span, tags.Span);
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Submit(ReadOnlyMemory<ushort> activations, Dtype dtype, ReadOnlyMemory<TokenTag> tags)
        {
            return Submit(activations.Span, dtype, tags.Span);
        }

        /// <summary>Encodes any memory.</summary>
        public int Encode(ReadOnlySpan<float> activations, ReadOnlySpan<TokenTag> tags, Latents latents)
        {
            fixed (float* data = &MemoryMarshal.GetReference(activations))
            fixed (TokenTag* first = &MemoryMarshal.GetReference(tags))
            {
                return Encode(data, Dtype.F32, activations.Length, first, tags.Length, latents);
            }
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Encode(ReadOnlySpan<ushort> activations, Dtype dtype, ReadOnlySpan<TokenTag> tags, Latents latents)
        {
            Encoder.TwoBytes(dtype);
            fixed (ushort* data = &MemoryMarshal.GetReference(activations))
            fixed (TokenTag* first = &MemoryMarshal.GetReference(tags))
            {
                return Encode(data, dtype, activations.Length, first, tags.Length, latents);
            }
        }

        /// <summary>As above, of memory that outlives the caller's stack frame.</summary>
        public int Encode(ReadOnlyMemory<float> activations, ReadOnlyMemory<TokenTag> tags, Latents latents)
        {
            return Encode(activations.Span, tags.Span, latents);
        }

        /// <summary>As above, of binary16 or bfloat16.</summary>
        public int Encode(ReadOnlyMemory<ushort> activations, Dtype dtype, ReadOnlyMemory<TokenTag> tags, Latents latents)
        {
            return Encode(activations.Span, dtype, tags.Span, latents);
        }
#endif

        private int Submit(void* data, Dtype dtype, int length, TokenTag* tags, int count)
        {
            kronsae_activations dense;
            Batch(&dense, data, dtype, length, count);
            int status;
            UIntPtr accepted;
            IntPtr error;
            using (var tap = new Use(Handle))
            {
                status = Methods.kronsae_tap_submit(tap.Pointer, &dense, tags, (UIntPtr)sizeof(TokenTag), &accepted, &error);
            }
            GC.KeepAlive(monitor);
            if (status != 0) KronsaeException.Check(status, error);
            return (int)accepted;
        }

        private int Encode(void* data, Dtype dtype, int length, TokenTag* tags, int count, Latents latents)
        {
            if (latents == null) throw new ArgumentNullException(nameof(latents));
            kronsae_activations dense;
            Batch(&dense, data, dtype, length, count);
            fixed (uint* counts = latents.Counts, indices = latents.Indices, active = latents.Active)
            fixed (float* values = latents.Values)
            fixed (Row* flags = latents.Flags)
            {
                uint none;
                kronsae_latents sparse;
                latents.Native(
                    &sparse, counts == null ? &none : counts, indices == null ? &none : indices,
                    values == null ? (float*)&none : values, active, flags);
                int status;
                UIntPtr accepted;
                IntPtr error;
                using (var tap = new Use(Handle))
                {
                    status = Methods.kronsae_tap_encode(
                        tap.Pointer, &dense, tags, (UIntPtr)sizeof(TokenTag), &sparse, &accepted, &error);
                }
                GC.KeepAlive(monitor);
                if (status != 0) KronsaeException.Check(status, error);
                latents.SkippedRows = (int)sparse.skipped_rows;
                latents.TruncatedRows = (int)sparse.truncated_rows;
                return (int)accepted;
            }
        }

        private void Batch(kronsae_activations* to, void* data, Dtype dtype, int length, int tags)
        {
            var rows = Encoder.RowsOf(length, DModel);
            if (rows != tags) throw new ArgumentException("there are " + rows + " rows of activations and " + tags + " tags");
            Encoder.Activations(to, data, dtype, rows, DModel, 0);
        }

        /// <summary>Says that a request is over.</summary>
        /// <exception cref="KronsaeFullException">The queue has no room for it; try again.</exception>
        public void EndRequest(ulong request)
        {
            int status;
            IntPtr error;
            using (var tap = new Use(Handle)) status = Methods.kronsae_tap_end_request(tap.Pointer, request, &error);
            GC.KeepAlive(monitor);
            if (status != 0) KronsaeException.Check(status, error);
        }

        /// <summary>Takes back the tokens of a request from a position on.</summary>
        /// <exception cref="KronsaeFullException">The queue has no room for it; try again.</exception>
        public void Rewind(ulong request, int position)
        {
            int status;
            IntPtr error;
            using (var tap = new Use(Handle)) status = Methods.kronsae_tap_rewind(tap.Pointer, request, position, &error);
            GC.KeepAlive(monitor);
            if (status != 0) KronsaeException.Check(status, error);
        }

        /// <summary>Frees the tap; what it took in is still encoded. Doing so again is no error.</summary>
        public void Dispose() { Handle.Dispose(); }
    }
}
