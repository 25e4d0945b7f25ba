using System;
using System.Collections;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>A match of a rule, or its retraction. A copy: it needs its monitor no more.</summary>
    public sealed class Event
    {
        /// <summary>Ascending in a monitor from 1, without gaps.</summary>
        public ulong Id { get; }
        /// <summary>What it says.</summary>
        public EventKind Kind { get; }
        /// <summary>How much it matters.</summary>
        public Severity Severity { get; }
        /// <summary>Whether tokens of the rule's window were missing.</summary>
        public bool Gap { get; }
        /// <summary>Position of the token that completed the match.</summary>
        public int Position { get; }
        /// <summary>That token's id, or -1.</summary>
        public int Token { get; }
        /// <summary>When it was found: nanoseconds since 1970, UTC.</summary>
        public ulong UnixNanos { get; }
        /// <summary>The request.</summary>
        public ulong Request { get; }
        /// <summary>Of a retraction: the id of the event taken back. Otherwise 0.</summary>
        public ulong Retracts { get; }
        /// <summary>The site's name.</summary>
        public string Site { get; }
        /// <summary>The first 16 hexadecimal digits of the model file's SHA-256.</summary>
        public string Model { get; }
        /// <summary>The rule's name.</summary>
        public string Rule { get; }
        /// <summary>The rule's latents on that token, in the rule's order.</summary>
        public EventLatent[] Latents { get; }

        internal unsafe Event(kronsae_event* from)
        {
            Id = from->id;
            Kind = (EventKind)from->kind;
            Severity = (Severity)from->severity;
            Gap = from->gap != 0;
            Position = from->position;
            Token = from->token;
            UnixNanos = from->unix_nanos;
            Request = from->request;
            Retracts = from->retracts;
            Site = Text.From(from->site);
            Model = Text.From(from->model);
            Rule = Text.From(from->rule);
            Latents = new EventLatent[(int)from->n_latents];
            for (var i = 0; i < Latents.Length; i++) Latents[i] = from->latents[i];
        }
    }

    /// <summary>
    /// The events of a monitor, waited for as they are asked for; it ends when the monitor is stopped and none is left, or
    /// with an OperationCanceledException. Each event goes to one of several enumerations.
    /// </summary>
    public sealed class EventStream : IEnumerable<Event>
#if KRONSAE_ASYNC || NETSTANDARD2_1 || NETCOREAPP3_0_OR_GREATER
        , IAsyncEnumerable<Event>
#endif
    {
        // A wait that nothing interrupts must not be long.
        private const int SliceMilliseconds = 100;
        private const int Most = 256;
        private readonly Monitor monitor;
        private readonly CancellationToken cancelled;

        internal EventStream(Monitor monitor, CancellationToken cancelled)
        {
            this.monitor = monitor;
            this.cancelled = cancelled;
        }

        /// <inheritdoc/>
        public IEnumerator<Event> GetEnumerator()
        {
            while (true)
            {
                var events = Next(cancelled);
                if (events == null) yield break;
                foreach (var one in events) yield return one;
            }
        }

        IEnumerator IEnumerable.GetEnumerator() { return GetEnumerator(); }

        /// <summary>At least one event, or null at the end.</summary>
        private Event[] Next(CancellationToken cancellation)
        {
            while (true)
            {
                cancellation.ThrowIfCancellationRequested();
                try
                {
                    var events = monitor.Poll(Most, SliceMilliseconds);
                    if (events.Length > 0) return events;
                }
                catch (KronsaeStoppedException)
                {
                    return null;
                }
            }
        }

#if KRONSAE_ASYNC || NETSTANDARD2_1 || NETCOREAPP3_0_OR_GREATER
        /// <summary>Waits on a thread of the pool.</summary>
        public IAsyncEnumerator<Event> GetAsyncEnumerator(CancellationToken cancellationToken = default(CancellationToken))
        {
            return new Asynchronous(this, CancellationTokenSource.CreateLinkedTokenSource(cancelled, cancellationToken));
        }

        private sealed class Asynchronous : IAsyncEnumerator<Event>
        {
            private readonly EventStream stream;
            private readonly CancellationTokenSource cancellation;
            private Event[] events = new Event[0];
            private int at = -1;

            internal Asynchronous(EventStream stream, CancellationTokenSource cancellation)
            {
                this.stream = stream;
                this.cancellation = cancellation;
            }

            public Event Current => events[at];

            public ValueTask<bool> MoveNextAsync()
            {
                if (++at < events.Length) return new ValueTask<bool>(true);
                return new ValueTask<bool>(Task.Run(() =>
                {
                    var next = stream.Next(cancellation.Token);
                    events = next ?? new Event[0];
                    at = 0;
                    return next != null;
                }));
            }

            public ValueTask DisposeAsync()
            {
                cancellation.Dispose();
                return default(ValueTask);
            }
        }
#endif
    }
}
