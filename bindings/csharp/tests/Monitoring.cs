using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;

namespace Kronsae.Tests
{
    /// <summary>Monitors, taps, recorders, events and callbacks, by hand.</summary>
    public static class Monitoring
    {
        private const string Rules = "[[rule]]\nname = \"seen\"\nwhen = { latent = 0, above = 5.0 }\n";

        private static Site Watched(Monitor monitor)
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            {
                var site = monitor.AddSite("résidual", sae, layer: 15);
                monitor.SetRules(Rules);
                return site;
            }
        }

        private static void Feed(Tap tap, int tokens, int first = 7)
        {
            for (var i = 0; i < tokens; i++)
            {
                Want.Equal(1, tap.Submit(Arguments.Residual, new[] { new TokenTag((ulong)(first + i), i, 42, Token.Prompt) }), "accepted");
            }
        }

        public static void EventsByPolling()
        {
            using (var monitor = new Monitor(new MonitorOptions { Workers = 2, Cpus = new uint[] { 0 } }))
            using (var tap = new Tap(monitor, Watched(monitor), capacity: 64))
            {
                Want.Equal(0, monitor.Poll(10, 0).Length, "events before");
                Feed(tap, 3);
                monitor.Flush(10000);
                var events = monitor.Poll(10, 1000);
                Want.Equal(3, events.Length, "events");
                for (var i = 0; i < 3; i++)
                {
                    Want.Equal((ulong)(i + 1), events[i].Id, "id");
                    Want.Equal((ulong)(7 + i), events[i].Request, "request");
                    Want.Equal(i, events[i].Position, "position");
                    Want.Equal(42, events[i].Token, "token");
                    Want.Equal("seen", events[i].Rule, "rule");
                    Want.Equal("résidual", events[i].Site, "site");
                    Want.Equal(16, events[i].Model.Length, "model");
                    Want.Equal(EventKind.Matched, events[i].Kind, "kind");
                    Want.Equal(0u, events[i].Latents[0].Latent, "latent");
                    Want.Equal(6.0f, events[i].Latents[0].Value, "value");
                }
                tap.Rewind(9, 0);
                monitor.Flush(10000);
                var back = monitor.Poll(10, 1000).Single();
                Want.Equal(EventKind.Retracted, back.Kind, "kind");
                Want.Equal(3ul, back.Retracts, "retracts");
                tap.EndRequest(7);
                monitor.Flush(10000);
                var status = monitor.Status;
                Want.Equal(3ul, status.Submitted, "submitted");
                Want.Equal(3ul, status.Encoded, "encoded");
                Want.Equal(MonitorState.Running, status.State, "state");
                Want.True(monitor.MetricsText().Contains("# TYPE"), "metrics");
                Want.True(monitor.MetricsText(Metrics.Openmetrics).TrimEnd().EndsWith("# EOF"), "OpenMetrics");
                Want.True(monitor.SnapshotJson().Contains("résidual"), "snapshot");
                Want.Throws<KronsaeArgumentException>(() => monitor.MetricsText((Metrics)99));
                monitor.Stop(10000);
                Want.Equal(MonitorState.Stopped, monitor.Status.State, "state");
                Want.Throws<KronsaeStoppedException>(() => monitor.Poll(1, 1000));
                Want.Throws<KronsaeStoppedException>(() => Feed(tap, 1));
            }
        }

        /// <summary>An enumeration ends when the monitor is stopped, and when it is cancelled.</summary>
        public static void EventsAsAStream()
        {
            using (var monitor = new Monitor())
            using (var tap = new Tap(monitor, Watched(monitor)))
            {
                Feed(tap, 5);
                Want.Equal(3, monitor.Events().Take(3).Count(), "taken");
                var cancelled = new CancellationTokenSource();
                var waiting = new Thread(() => { Thread.Sleep(300); cancelled.Cancel(); });
                waiting.Start();
                Want.Throws<OperationCanceledException>(() => { foreach (var one in monitor.Events(cancelled.Token)) { } });
                waiting.Join();
#if KRONSAE_ASYNC
                Feed(tap, 2, 100);
                var events = monitor.Events().GetAsyncEnumerator();
                Want.True(events.MoveNextAsync().AsTask().Result, "first");
                Want.Equal("seen", events.Current.Rule, "rule");
                Want.True(events.MoveNextAsync().AsTask().Result, "second");
                monitor.Stop(10000);
                Want.True(!events.MoveNextAsync().AsTask().Result, "end");
                events.DisposeAsync().AsTask().Wait();
#else
                monitor.Stop(10000);
#endif
                Want.Equal(0, monitor.Events().Count(), "after the end");
            }
        }

        /// <summary>What a callback throws is caught, counted and reported, and the monitor goes on; the collector does not take
        /// what the library still calls.</summary>
        public static void CallbacksThatThrow()
        {
            using (var monitor = new Monitor())
            using (var tap = new Tap(monitor, Watched(monitor)))
            {
                var seen = new List<ulong>();
                var reported = 0;
                monitor.CallbackFailed = e =>
                {
                    Interlocked.Increment(ref reported);
                    throw new Exception("the report fails, too");
                };
                monitor.SetEventCallback(one =>
                {
                    lock (seen) seen.Add(one.Id);
                    if (one.Id % 2 == 0) throw new InvalidOperationException("event " + one.Id);
                });
                for (var i = 0; i < 10; i++)
                {
                    Feed(tap, 10, 10 * i);
                    GC.Collect();
                    GC.WaitForPendingFinalizers();
                }
                monitor.Flush(10000);
                Want.Equal(100, seen.Count, "events");
                Want.Equal(50, reported, "reports");
                Want.Equal(100L, monitor.CallbackFailures, "failures, of callbacks and of reports");
                Want.Equal("event 100", monitor.LastCallbackException.Message, "the last");
                Want.Equal(MonitorState.Running, monitor.Status.State, "state");
                Exception inside = null;
                monitor.SetEventCallback(one =>
                {
                    try { monitor.Flush(1000); }
                    catch (Exception e) { inside = e; }
                });
                Feed(tap, 1, 200);
                monitor.Flush(10000);
                Want.True(inside is KronsaeArgumentException, "waiting inside a callback: " + inside);
                monitor.SetEventCallback(null);
                Feed(tap, 1, 300);
                Want.Equal(1, monitor.Poll(10, 5000).Length, "polling after the callback");
            }
        }

        /// <summary>Collections while callbacks are in managed code, allocating: the runtime must be able to stop the library's
        /// threads there, and they must not wait for each other.</summary>
        public static void CollectionsDuringCallbacks()
        {
            var done = 0;
            var work = new Thread(() =>
            {
                using (var monitor = new Monitor(new MonitorOptions { Workers = 2 }))
                using (var tap = new Tap(monitor, Watched(monitor)))
                using (var other = new Tap(monitor, monitor.AddSite("other", Sae.Open(Given.Model("tiny")))))
                {
                    monitor.SetEventCallback(one =>
                    {
                        var kept = new List<object>();
                        for (var i = 0; i < 20000; i++)
                        {
                            if (i % 10 == 0) kept.Add(new byte[100]);
                        }
                        Interlocked.Add(ref done, kept.Count > 0 ? 1 : 0);
                    });
                    for (var i = 0; i < 300; i++)
                    {
                        Feed(tap, 1, i);
                        Feed(other, 1, 1000 + i);
                        GC.Collect();
                    }
                    monitor.Flush(60000);
                }
            }) { IsBackground = true };
            work.Start();
            Want.True(work.Join(120000), "a collection and a callback wait for each other, after " + done + " callbacks");
            Want.True(done >= 300, "only " + done + " callbacks");
        }

        /// <summary>Recording, with text from a callback that throws for some tokens.</summary>
        public static void Recordings()
        {
            var folder = Path.Combine(Path.GetTempPath(), "kronsae-csharp-" + Guid.NewGuid().ToString("N"));
            try
            {
                using (var monitor = new Monitor())
                {
                    var site = Watched(monitor);
                    monitor.SetTokenText(token => token == 42 ? " wörd" : throw new Exception("no such token"));
                    using (var tap = new Tap(monitor, site))
                    using (var recorder = new Recorder(
                        monitor, site, folder, new RecorderOptions { Flags = Record.Text | Record.Position0, ShardTokens = 2 }))
                    {
                        Want.Throws<KronsaeArgumentException>(() => new Recorder(monitor, site, folder));
                        Feed(tap, 4);
                        tap.Submit(Arguments.Residual, new[] { new TokenTag(1, 5, 43) });
                        monitor.Stop(10000);
                        Want.Equal(5ul, recorder.Status.Written, "written");
                        Want.True(!recorder.Status.Recording, "still recording");
                        Want.True(monitor.CallbackFailures > 0, "the text's failure was not counted");
                        monitor.Dispose();
                        Want.Throws<KronsaeStoppedException>(() => recorder.Status.ToString());
                    }
                }
                var shards = Directory.GetFiles(folder, "*.safetensors");
                Want.Equal(3, shards.Length, "shards");
                Want.True(shards.Any(s => System.Text.Encoding.UTF8.GetString(File.ReadAllBytes(s)).Contains("wörd")), "text");
            }
            finally
            {
                if (Directory.Exists(folder)) Directory.Delete(folder, true);
            }
        }

        public static void WrongArguments()
        {
            using (var monitor = new Monitor())
            {
                var site = Watched(monitor);
                using (var sae = Sae.Open(Given.Model("tiny")))
                using (var tap = new Tap(monitor, site))
                {
                    Want.Throws<KronsaeArgumentException>(() => monitor.AddSite("résidual", sae), "résidual");
                    Want.Throws<KronsaeArgumentException>(() => monitor.AddSite("b", sae, layer: 3));
                    Want.Throws<ArgumentNullException>(() => monitor.AddSite(null, sae));
                    Want.Throws<KronsaeFormatException>(() => monitor.SetRules("not = [rules"));
                    Want.Throws<KronsaeIOException>(() => monitor.LoadRules("/nowhere"));
                    Want.Throws<KronsaeIOException>(() => monitor.LoadLabels(site, "/nowhere"));
                    Want.Throws<ArgumentException>(() => tap.Submit(Arguments.Residual, new TokenTag[2]), "2 tags");
                    Want.Throws<ArgumentException>(() => tap.Submit(new float[7], new TokenTag[1]), "7 elements");
                    Want.Throws<ArgumentNullException>(() => tap.Submit(Arguments.Residual, null));
                    Want.Equal(0, tap.Submit(new float[0], new TokenTag[0]), "nothing");
                    Want.Throws<KronsaeArgumentException>(() => new Tap(monitor, site, (Sampling)55));
                    Want.Throws<ArgumentOutOfRangeException>(() => monitor.Poll(0, 0));
                    Want.Throws<ArgumentOutOfRangeException>(() => monitor.Stop(-1));
                    var room = new Latents(1, sae.Info.Capacity);
                    tap.Encode(Arguments.Residual, new[] { new TokenTag(1, 0) }, room);
                    Want.Equal(3u, room.Counts[0], "encoded");
                    monitor.ReplaceSae(site, sae);
                }
            }
        }

        /// <summary>A log callback that throws is counted.</summary>
        public static void LogCallbacks()
        {
            var lines = new List<string>();
            Logging.SetCallback((level, message) => { lock (lines) lines.Add(level + " " + message); });
            using (Sae.Open(Given.Model("tiny"))) { }
            Want.True(lines.Any(line => line.StartsWith("Info ")), "no message: " + string.Join("|", lines));
            Logging.SetCallback((level, message) => throw new Exception("no"));
            var before = Logging.CallbackFailures;
            using (Sae.Open(Given.Model("tiny"))) { }
            Want.True(Logging.CallbackFailures > before, "not counted");
            Logging.SetCallback(null);
        }
    }
}
