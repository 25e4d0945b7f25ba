using System;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>What is recorded; 0 and null mean the default of include/kronsae.h.</summary>
    public sealed class RecorderOptions
    {
        /// <summary>What is written besides activations.</summary>
        public Record Flags;
        /// <summary>F32 or Bf16; 0: Bf16.</summary>
        public Dtype Dtype;
        /// <summary>Seconds after which a shard is written at the latest.</summary>
        public uint ShardSeconds;
        /// <summary>Tokens of a shard.</summary>
        public ulong ShardTokens;
        /// <summary>Recording ends before the folder's shards are larger.</summary>
        public ulong MostBytes;
        /// <summary>Recording ends after so many tokens.</summary>
        public ulong MostTokens;
        /// <summary>Which LLM.</summary>
        public string Model;
        /// <summary>Which activations.</summary>
        public string Hook;
    }

    /// <summary>What a recording has done.</summary>
    public struct RecorderStatus
    {
        internal RecorderStatus(kronsae_recorder_status status)
        {
            Recording = status.recording != 0;
            Written = status.written;
            Failures = status.failures;
        }

        /// <summary>Whether the monitor runs; otherwise the shards are closed.</summary>
        public bool Recording { get; }
        /// <summary>Tokens in finished shards.</summary>
        public ulong Written { get; }
        /// <summary>Tokens it had to leave out.</summary>
        public ulong Failures { get; }
    }

    /// <summary>Writes what the taps of a site take in into activation shards. Any number of threads may use one.</summary>
    public sealed unsafe class Recorder : IDisposable
    {
        private readonly RecorderHandle handle;
        // A monitor that is collected is destroyed, which would end the recording.
        private readonly Monitor monitor;

        /// <summary>Starts to record into a folder, which is made if it is missing.</summary>
        /// <exception cref="KronsaeIOException">The folder cannot be made or written to.</exception>
        public Recorder(Monitor monitor, Site site, string folder, RecorderOptions options = null)
        {
            if (monitor == null) throw new ArgumentNullException(nameof(monitor));
            if (site == null) throw new ArgumentNullException(nameof(site));
            this.monitor = monitor;
            var o = options ?? new RecorderOptions();
            fixed (byte* path = Text.Needed(folder, nameof(folder)))
            fixed (byte* model = Text.ToC(o.Model, nameof(o.Model)), hook = Text.ToC(o.Hook, nameof(o.Hook)))
            {
                var native = new kronsae_recorder_options
                {
                    struct_size = (uint)sizeof(kronsae_recorder_options),
                    flags = (uint)o.Flags,
                    dtype = (int)o.Dtype,
                    shard_seconds = o.ShardSeconds,
                    shard_tokens = o.ShardTokens,
                    most_bytes = o.MostBytes,
                    most_tokens = o.MostTokens,
                    folder = path,
                    model = model,
                    hook = hook,
                };
                var status = Methods.kronsae_recorder_start(
                    monitor.Handle, site.Number, &native, out handle, out var error);
                KronsaeException.Check(status, error);
            }
        }

        /// <summary>The monitor.</summary>
        public Monitor Monitor => monitor;

        /// <summary>How far it is.</summary>
        /// <exception cref="KronsaeStoppedException">The monitor was disposed of.</exception>
        public RecorderStatus Status
        {
            get
            {
                var status = new kronsae_recorder_status { struct_size = (uint)sizeof(kronsae_recorder_status) };
                KronsaeException.Check(Methods.kronsae_recorder_get_status(handle, &status, out var error), error);
                return new RecorderStatus(status);
            }
        }

        /// <summary>Writes the last shard and ends the recording. Doing so again is no error.</summary>
        public void Dispose() { handle.Dispose(); }
    }
}
