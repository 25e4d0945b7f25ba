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

        internal unsafe kronsae_latents Native(uint* counts, uint* indices, float* values, uint* active, Row* flags)
        {
            return new kronsae_latents
            {
                struct_size = (uint)sizeof(kronsae_latents),
                rows = (UIntPtr)Rows,
                capacity = (UIntPtr)Capacity,
                counts = counts,
                indices = indices,
                values = values,
                active = active,
                row_flags = (byte*)flags,
            };
        }
    }
}
