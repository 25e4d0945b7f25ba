using System;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>
    /// Sparse latents of a batch, in arrays that are used again from call to call. Row r is at r * Capacity of
    /// <see cref="Indices"/> and <see cref="Values"/>: its first Counts[r] entries, strongest first; entries past them stay
    /// untouched. One thread at a time.
    /// </summary>
    public sealed class Latents
    {
        /// <summary>Rows there is room for.</summary>
        public int Rows { get; }
        /// <summary>Entries a row.</summary>
        public int Capacity { get; }
        /// <summary>[Rows]: entries written.</summary>
        public uint[] Counts { get; }
        /// <summary>[Rows, Capacity]: latent indices.</summary>
        public uint[] Indices { get; }
        /// <summary>[Rows, Capacity]: latent values, in units of normalised activations.</summary>
        public float[] Values { get; }
        /// <summary>[Rows]: how many latents were active before any cut.</summary>
        public uint[] Active { get; }
        /// <summary>[Rows]: bits about each row.</summary>
        public Row[] Flags { get; }
        /// <summary>Rows of the last call that were not finite.</summary>
        public int SkippedRows { get; internal set; }
        /// <summary>Rows of the last call that were cut.</summary>
        public int TruncatedRows { get; internal set; }

        /// <summary>Room for so many rows of so many entries.</summary>
        /// <exception cref="ArgumentOutOfRangeException">A negative number.</exception>
        public Latents(int rows, int capacity)
        {
            if (rows < 0) throw new ArgumentOutOfRangeException(nameof(rows));
            if (capacity < 0) throw new ArgumentOutOfRangeException(nameof(capacity));
            Rows = rows;
            Capacity = capacity;
            Counts = new uint[rows];
            Indices = new uint[checked(rows * capacity)];
            Values = new float[rows * capacity];
            Active = new uint[rows];
            Flags = new Row[rows];
        }

        internal static ArgumentException WrongRows(int wanted, int room)
        {
            return new ArgumentException("there are " + wanted + " rows, and room for 0 to " + room);
        }

#if KRONSAE_SPAN || NETSTANDARD2_1 || NETCOREAPP2_1_OR_GREATER
        /// <summary>The latents of a row, strongest first.</summary>
        public ReadOnlySpan<uint> IndicesOf(int row) { return new ReadOnlySpan<uint>(Indices, row * Capacity, (int)Counts[row]); }

        /// <summary>Their values, in the same order.</summary>
        public ReadOnlySpan<float> ValuesOf(int row) { return new ReadOnlySpan<float>(Values, row * Capacity, (int)Counts[row]); }
#endif

        /// <summary>Written in place: a struct of this size that is returned gets copied, on every call.</summary>
        internal unsafe void Native(
            kronsae_latents* to, uint* counts, uint* indices, float* values, uint* active, Row* flags)
        {
            to->struct_size = (uint)sizeof(kronsae_latents);
            to->reserved = 0;
            to->rows = (UIntPtr)Rows;
            to->capacity = (UIntPtr)Capacity;
            to->counts = counts;
            to->indices = indices;
            to->values = values;
            to->active = active;
            to->row_flags = (byte*)flags;
            to->skipped_rows = UIntPtr.Zero;
            to->truncated_rows = UIntPtr.Zero;
        }
    }
}
