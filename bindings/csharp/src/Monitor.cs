using System;
using System.Runtime.CompilerServices;
using System.Text;
using System.Threading;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>How a monitor works; 0 and null mean the default of include/kronsae.h.</summary>
    public sealed class MonitorOptions
    {
        /// <summary>Workers run only on CPU time that nobody else wants.</summary>
        public bool SchedIdle;
        /// <summary>Workers, among which sites are dealt out.</summary>
        public uint Workers;
        /// <summary>Threads of each worker's encoder.</summary>
        public uint EncoderThreads;
        /// <summary>Requests of a site with state at a time.</summary>
        public uint Requests;
        /// <summary>Events that wait for polling.</summary>
        public uint Events;
        /// <summary>Tokens of a site that the live page can look back on.</summary>
        public uint RecentTokens;
        /// <summary>The most watched latents of a site.</summary>
        public uint Watched;
        /// <summary>The workers' nice value.</summary>
        public int Nice;
        /// <summary>The share of one CPU's time that a worker may use.</summary>
        public float CpuShare;
        /// <summary>Tokens a second that each worker encodes whatever CpuShare says.</summary>
        public float LeastTokensPerSecond;
        /// <summary>Tokens after which an observation counts half.</summary>
        public double HalfLifeTokens;
        /// <summary>CPUs that workers may run on.</summary>
        public uint[] Cpus;
        /// <summary>Bytes that queues and state may take.</summary>
        public ulong MemoryLimit;
    }

    /// <summary>Where the tokens of all taps went. Always: submitted = encoded + sampled out + dropped + not finite +
    /// queued.</summary>
    public struct MonitorStatus
    {
        private readonly kronsae_monitor_status status;

        internal MonitorStatus(kronsae_monitor_status status) { this.status = status; }

        /// <summary>What the monitor is doing.</summary>
        public MonitorState State => (MonitorState)status.state;
        /// <summary>Tokens handed to submit.</summary>
        public ulong Submitted => status.submitted;
        /// <summary>Tokens encoded.</summary>
        public ulong Encoded => status.encoded;
        /// <summary>Tokens that sampling left out.</summary>
        public ulong SampledOut => status.sampled_out;
        /// <summary>Tokens for which a queue had no room.</summary>
        public ulong Dropped => status.dropped;
        /// <summary>Tokens that were not finite.</summary>
        public ulong NotFinite => status.not_finite;
        /// <summary>Tokens in queues now.</summary>
        public ulong Queued => status.queued;
        /// <summary>Events made.</summary>
        public ulong Events => status.events;
        /// <summary>Events lost because polling was too slow.</summary>
        public ulong EventsLost => status.events_lost;
        /// <summary>Bytes of queues and state.</summary>
        public ulong Memory => status.memory;
        /// <summary>CPU time of the workers, in seconds.</summary>
        public double CpuSeconds => status.cpu_seconds;
        /// <summary>Seconds since the monitor was made.</summary>
        public double Uptime => status.uptime;
    }

    /// <summary>A place in the host's model where activations are tapped.</summary>
    public sealed class Site
    {
        internal Site(uint number, string name, int dModel)
        {
            Number = number;
            Name = name;
            DModel = dModel;
        }

        /// <summary>Its number in the monitor.</summary>
        public uint Number { get; }
        /// <summary>Its name.</summary>
        public string Name { get; }
        /// <summary>Elements of an activation vector.</summary>
        public int DModel { get; }
    }

    /// <summary>
    /// Watches which latents fire while a host serves. Any number of threads may use one at once; none of its calls is for
    /// threads that must not wait: those have taps. Do not dispose of it inside one of its callbacks.
    /// </summary>
    public sealed unsafe class Monitor : IDisposable
    {
        private delegate int Write(byte* buffer, UIntPtr capacity, out UIntPtr size, out IntPtr error);

        internal readonly MonitorHandle Handle;

        /// <summary>A monitor without sites.</summary>
        /// <exception cref="KronsaeException">An option is wrong, or the system refuses it.</exception>
        public Monitor(MonitorOptions options = null)
        {
            Library.Load();
            Handle = Create(options ?? new MonitorOptions());
        }

        // Compiled when the library is loaded, as Sae says.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static MonitorHandle Create(MonitorOptions o)
        {
            fixed (uint* cpus = o.Cpus)
            {
                var native = new kronsae_monitor_options
                {
                    struct_size = (uint)sizeof(kronsae_monitor_options),
                    flags = o.SchedIdle ? 1u : 0u,
                    workers = o.Workers,
                    encoder_threads = o.EncoderThreads,
                    requests = o.Requests,
                    events = o.Events,
                    recent_tokens = o.RecentTokens,
                    watched = o.Watched,
                    nice = o.Nice,
                    cpu_share = o.CpuShare,
                    least_tokens_per_second = o.LeastTokensPerSecond,
                    half_life_tokens = o.HalfLifeTokens,
                    cpus = cpus,
                    n_cpus = (UIntPtr)(o.Cpus?.Length ?? 0),
                    memory_limit = (UIntPtr)o.MemoryLimit,
                };
                KronsaeException.Check(Methods.kronsae_monitor_create(&native, out var handle, out var error), error);
                return handle;
            }
        }

        /// <summary>What it is doing and where its tokens went.</summary>
        public MonitorStatus Status
        {
            get
            {
                var status = new kronsae_monitor_status { struct_size = (uint)sizeof(kronsae_monitor_status) };
                KronsaeException.Check(Methods.kronsae_monitor_get_status(Handle, &status, out var error), error);
                return new MonitorStatus(status);
            }
        }

        /// <summary>Adds a site.</summary>
        /// <param name="name">Unique in the monitor, 1 to 128 characters.</param>
        /// <param name="sae">The model, which may be disposed of afterwards; null: tokens are only recorded.</param>
        /// <param name="watch">Latents to watch; null: all are computed.</param>
        /// <param name="layer">The layer it is at; null: not said.</param>
        /// <param name="anyLayer">A model trained at another layer is taken all the same.</param>
        /// <param name="dModel">Without a model: elements of an activation vector.</param>
        public Site AddSite(string name, Sae sae, uint[] watch = null, uint? layer = null, bool anyLayer = false, int dModel = 0)
        {
            var text = Text.Needed(name, nameof(name));
            if (dModel < 0) throw new ArgumentOutOfRangeException(nameof(dModel), dModel, "is negative");
            if (sae != null) dModel = sae.Info.DModel;
            var held = false;
            try
            {
                sae?.Handle.DangerousAddRef(ref held);
                fixed (byte* named = text)
                fixed (uint* watched = watch)
                {
                    var options = new kronsae_site_options
                    {
                        struct_size = (uint)sizeof(kronsae_site_options),
                        flags = (layer.HasValue ? 1u : 0u) | (anyLayer ? 2u : 0u),
                        layer = layer ?? 0,
                        name = named,
                        watch = watched,
                        n_watch = (UIntPtr)(watch?.Length ?? 0),
                        d_model = (UIntPtr)dModel,
                    };
                    var model = sae == null ? IntPtr.Zero : sae.Handle.DangerousGetHandle();
                    var status = Methods.kronsae_monitor_add_site(Handle, &options, model, out var site, out var error);
                    KronsaeException.Check(status, error);
                    return new Site(site, name, dModel);
                }
            }
            finally
            {
                if (held) sae.Handle.DangerousRelease();
            }
        }

        /// <summary>Puts another model of the same d_model in force at a site, while taps go on.</summary>
        public void ReplaceSae(Site site, Sae sae)
        {
            if (site == null) throw new ArgumentNullException(nameof(site));
            if (sae == null) throw new ArgumentNullException(nameof(sae));
            KronsaeException.Check(Methods.kronsae_monitor_replace_sae(Handle, site.Number, sae.Handle, out var error), error);
        }

        /// <summary>Puts the rules of a TOML file in force.</summary>
        public void LoadRules(string path)
        {
            fixed (byte* name = Text.Needed(path, nameof(path)))
            {
                KronsaeException.Check(Methods.kronsae_monitor_load_rules(Handle, name, out var error), error);
            }
        }

        /// <summary>Puts rules, as TOML, in force.</summary>
        /// <exception cref="KronsaeFormatException">It is not TOML, or not rules.</exception>
        public void SetRules(string toml)
        {
            if (toml == null) throw new ArgumentNullException(nameof(toml));
            var bytes = Encoding.UTF8.GetBytes(toml + "\n");
            fixed (byte* text = bytes)
            {
                var status = Methods.kronsae_monitor_set_rules(Handle, text, (UIntPtr)bytes.Length, out var error);
                KronsaeException.Check(status, error);
            }
        }

        /// <summary>Reads labels of a site's latents, a TSV file of index and text.</summary>
        public void LoadLabels(Site site, string path)
        {
            if (site == null) throw new ArgumentNullException(nameof(site));
            fixed (byte* name = Text.Needed(path, nameof(path)))
            {
                KronsaeException.Check(Methods.kronsae_monitor_load_labels(Handle, site.Number, name, out var error), error);
            }
        }

        /// <summary>Waits until all that was submitted before is encoded and its events are delivered.</summary>
        /// <exception cref="KronsaeTimeoutException">It takes longer.</exception>
        public void Flush(int timeoutMilliseconds)
        {
            KronsaeException.Check(Methods.kronsae_monitor_flush(Handle, Wait(timeoutMilliseconds), out var error), error);
        }

        /// <summary>Ends its work: taps refuse, what they took in is encoded, workers end. Stopping again is no error.</summary>
        /// <exception cref="KronsaeTimeoutException">It takes longer; it may be called again.</exception>
        public void Stop(int timeoutMilliseconds)
        {
            KronsaeException.Check(Methods.kronsae_monitor_stop(Handle, Wait(timeoutMilliseconds), out var error), error);
        }

        /// <summary>Takes the oldest events, at most so many; waits for the first.</summary>
        /// <exception cref="KronsaeStoppedException">It was stopped, and no event is left.</exception>
        public Event[] Poll(int most, int timeoutMilliseconds)
        {
            if (most < 1) throw new ArgumentOutOfRangeException(nameof(most), most, "is below 1");
            var status = Methods.kronsae_monitor_poll_events(
                Handle, (UIntPtr)most, Wait(timeoutMilliseconds), out var batch, out var error);
            KronsaeException.Check(status, error);
            using (batch)
            {
                var events = new Event[(int)Methods.kronsae_event_batch_count(batch)];
                for (var i = 0; i < events.Length; i++)
                {
                    var one = new kronsae_event { struct_size = (uint)sizeof(kronsae_event) };
                    KronsaeException.Check(Methods.kronsae_event_batch_get(batch, (UIntPtr)i, &one, out error), error);
                    events[i] = new Event(&one);
                }
                return events;
            }
        }

        /// <summary>The events from now on, to loop over.</summary>
        public EventStream Events(CancellationToken cancelled = default(CancellationToken))
        {
            return new EventStream(this, cancelled);
        }

        /// <summary>Hands events to a callback as they are made, instead of polling; null ends that. It runs on workers, whose
        /// tokens wait meanwhile.</summary>
        public void SetEventCallback(Action<Event> callback) { Handle.Callbacks.SetEvent(Handle, callback); }

        /// <summary>Sets how the text of tokens is found; null: no text appears anywhere. It may return null.</summary>
        public void SetTokenText(Func<int, string> callback) { Handle.Callbacks.SetTokenText(Handle, callback); }

        /// <summary>How often a callback threw. The exception is caught, and the monitor goes on.</summary>
        public long CallbackFailures => Handle.Callbacks.Failures;

        /// <summary>The last exception of a callback, or null.</summary>
        public Exception LastCallbackException => Handle.Callbacks.Last;

        /// <summary>Is told of exceptions of callbacks, on the thread they happen on.</summary>
        public Action<Exception> CallbackFailed
        {
            get { return Handle.Callbacks.Failed; }
            set { Handle.Callbacks.Failed = value; }
        }

        /// <summary>The metrics as text, for a Prometheus endpoint.</summary>
        public string MetricsText(Metrics form = Metrics.Prometheus)
        {
            return Written((byte* buffer, UIntPtr capacity, out UIntPtr size, out IntPtr error) =>
                Methods.kronsae_monitor_metrics(Handle, (int)form, buffer, capacity, out size, out error));
        }

        /// <summary>All that it counts, as a JSON object.</summary>
        public string SnapshotJson()
        {
            return Written((byte* buffer, UIntPtr capacity, out UIntPtr size, out IntPtr error) =>
                Methods.kronsae_monitor_snapshot_json(Handle, buffer, capacity, out size, out error));
        }

        /// <summary>Serves the live page until it is disposed of.</summary>
        /// <param name="address">An IP address and a port; null: 127.0.0.1:9464.</param>
        /// <param name="token">What clients must send as a bearer token; null: nothing.</param>
        /// <returns>The address it listens at.</returns>
        public string Serve(string address = null, string token = null)
        {
            const int room = 64;
            var bound = stackalloc byte[room];
            fixed (byte* at = Text.ToC(address, nameof(address)), secret = Text.ToC(token, nameof(token)))
            {
                var options = new kronsae_serve_options
                {
                    struct_size = (uint)sizeof(kronsae_serve_options),
                    address = at,
                    token = secret,
                };
                var status = Methods.kronsae_monitor_serve(Handle, &options, bound, (UIntPtr)room, out var error);
                KronsaeException.Check(status, error);
            }
            return Text.From(bound);
        }

        /// <summary>Grows a buffer until the text fits, which changes meanwhile.</summary>
        private static string Written(Write write)
        {
            var buffer = new byte[16384];
            while (true)
            {
                fixed (byte* text = buffer)
                {
                    KronsaeException.Check(write(text, (UIntPtr)buffer.Length, out var size, out var error), error);
                    if ((ulong)size < (ulong)buffer.Length) return Encoding.UTF8.GetString(buffer, 0, (int)size);
                    buffer = new byte[checked((int)size + (int)size / 4 + 1)];
                }
            }
        }

        private static uint Wait(int milliseconds)
        {
            if (milliseconds < 0) throw new ArgumentOutOfRangeException("timeoutMilliseconds", milliseconds, "is negative");
            return (uint)milliseconds;
        }

        /// <summary>Destroys it when no call uses it any more; what is queued is lost unless it was stopped. Taps and recorders
        /// are stopped. Doing so again is no error.</summary>
        public void Dispose() { Handle.Dispose(); }
    }
}
