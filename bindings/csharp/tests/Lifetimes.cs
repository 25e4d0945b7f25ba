using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.CompilerServices;
using System.Threading;

namespace Kronsae.Tests
{
    /// <summary>Objects disposed of twice, during use, or never; memory that moves; threads.</summary>
    public static class Lifetimes
    {
        public static void DisposedTwice()
        {
            var sae = Sae.Open(Given.Model("tiny"));
            var encoder = sae.CreateEncoder();
            var monitor = new Monitor();
            var tap = new Tap(monitor, monitor.AddSite("a", sae));
            foreach (var one in new IDisposable[] { sae, encoder, monitor, tap })
            {
                one.Dispose();
                one.Dispose();
            }
            Want.Throws<ObjectDisposedException>(() => sae.Info.ToString());
            Want.Throws<ObjectDisposedException>(() => sae.Source("layer"));
            Want.Throws<ObjectDisposedException>(() => sae.CreateEncoder());
            Want.Throws<ObjectDisposedException>(() => encoder.Encode(Arguments.Residual, new Latents(1, 3)));
            Want.Throws<ObjectDisposedException>(() => monitor.Poll(1, 0));
            Want.Throws<ObjectDisposedException>(() => tap.Submit(Arguments.Residual, new[] { new TokenTag(1, 0) }));
        }

        /// <summary>What depends on a disposed object says so.</summary>
        public static void DisposedUnderneath()
        {
            var sae = Sae.Open(Given.Model("tiny"));
            var monitor = new Monitor();
            using (var encoder = sae.CreateEncoder())
            using (var tap = new Tap(monitor, monitor.AddSite("a", sae)))
            {
                sae.Dispose();
                Want.Throws<KronsaeStoppedException>(() => encoder.Encode(Arguments.Residual, encoder.CreateLatents(1)));
                Want.Equal(1, tap.Submit(Arguments.Residual, new[] { new TokenTag(1, 0) }), "the monitor keeps its model");
                monitor.Dispose();
                Want.Throws<KronsaeStoppedException>(() => tap.Submit(Arguments.Residual, new[] { new TokenTag(1, 1) }));
            }
        }

        /// <summary>A call in progress ends before the object is freed; later ones are refused.</summary>
        public static void DisposedDuringUse()
        {
            for (var round = 0; round < 30; round++)
            {
                var sae = Sae.Open(Given.Model("random"));
                var encoder = sae.CreateEncoder();
                var x = new float[64 * encoder.DModel];
                for (var i = 0; i < x.Length; i++) x[i] = (i * 7 % 31) - 15;
                Exception unexpected = null;
                var calls = 0;
                var user = new Thread(() =>
                {
                    try
                    {
                        var room = encoder.CreateLatents(64);
                        while (true)
                        {
                            encoder.Encode(x, room);
                            Interlocked.Increment(ref calls);
                        }
                    }
                    catch (ObjectDisposedException) { }
                    catch (KronsaeStoppedException) { }
                    catch (Exception e) { unexpected = e; }
                });
                user.Start();
                while (Volatile.Read(ref calls) < 2 && user.IsAlive) Thread.Yield();
                if (round % 2 == 0) encoder.Dispose();
                else sae.Dispose();
                Want.True(user.Join(10000), "the thread does not end");
                if (unexpected != null) throw unexpected;
                Want.True(calls >= 2, "the thread never encoded");
                encoder.Dispose();
                sae.Dispose();
            }
        }

        /// <summary>Monitors and encoders that nobody disposes of: their threads end.</summary>
        public static void LeftToTheFinalizer()
        {
            var before = LibraryThreads();
            for (var i = 0; i < 10; i++) Abandon();
            Want.True(LibraryThreads() > before, "no thread of the library is seen");
            for (var wait = 0; LibraryThreads() > before && wait < 200; wait++)
            {
                // The collector of mono looks for references on stacks, where old ones may lie for a while.
                var other = new Thread(() => { GC.Collect(); });
                other.Start();
                other.Join();
                GC.Collect();
                GC.WaitForPendingFinalizers();
                Thread.Sleep(10);
            }
            Want.True(LibraryThreads() <= before + 2, "threads are left: " + (LibraryThreads() - before) + " of 20");
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Abandon()
        {
            var made = new Thread(() =>
            {
                var sae = Sae.Open(Given.Model("random"));
                var encoder = sae.CreateEncoder(2);
                encoder.Encode(new float[encoder.DModel], encoder.CreateLatents(1));
                var monitor = new Monitor();
                // The callback holds its monitor: that alone must not keep it alive.
                monitor.SetEventCallback(one => monitor.Status.ToString());
                var tap = new Tap(monitor, monitor.AddSite("a", sae));
                tap.Submit(new float[tap.DModel], new[] { new TokenTag(1, 0) });
            });
            made.Start();
            made.Join();
        }

        private static int LibraryThreads()
        {
            var count = 0;
            foreach (var task in Directory.GetDirectories("/proc/self/task"))
            {
                try
                {
                    if (File.ReadAllText(Path.Combine(task, "comm")).StartsWith("kronsae-")) count++;
                }
                catch (IOException)
                {
                    // It ended meanwhile.
                }
            }
            return count;
        }

        /// <summary>An encoder that is used keeps its model, though nobody else does.</summary>
        public static void AnEncoderKeepsItsModel()
        {
            var encoder = EncoderAlone();
            for (var i = 0; i < 5; i++)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
            }
            encoder.Encode(Arguments.Residual, encoder.CreateLatents(1));
            encoder.Dispose();
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static Encoder EncoderAlone() { return Sae.Open(Given.Model("tiny")).CreateEncoder(); }

        /// <summary>Eight threads on one model, while the collector moves their arrays, for five seconds; with KRONSAE_LONG in the
        /// environment for a minute.</summary>
        public static void EightThreadsAndMovingMemory()
        {
            using (var sae = Sae.Open(Given.Model("random")))
            {
                var d = sae.Info.DModel;
                var expected = Encoded(sae, 0);
                var seconds = string.IsNullOrEmpty(Environment.GetEnvironmentVariable("KRONSAE_LONG")) ? 5 : 60;
                var start = DateTime.UtcNow;
                var until = start.AddSeconds(seconds);
                var problems = new List<Exception>();
                long calls = 0;
                var threads = Enumerable.Range(0, 8).Select(number => new Thread(() =>
                {
                    try
                    {
                        using (var encoder = sae.CreateEncoder())
                        {
                            while (DateTime.UtcNow < until)
                            {
                                // New arrays, young enough to be moved.
                                var x = Input(d);
                                var room = encoder.CreateLatents(Rows);
                                encoder.Encode(x, room);
                                Same(expected, room);
                                encoder.Encode(x, room);
                                Same(expected, room);
                                Interlocked.Add(ref calls, 2);
                            }
                        }
                    }
                    catch (Exception e)
                    {
                        lock (problems) problems.Add(e);
                    }
                })).ToArray();
                foreach (var thread in threads) thread.Start();
                var early = 0;
                while (DateTime.UtcNow < until)
                {
                    GC.Collect();
                    Thread.Sleep(5);
                    if (early == 0 && DateTime.UtcNow > start.AddSeconds(seconds / 4.0)) early = ResidentKiB();
                }
                var late = ResidentKiB();
                foreach (var thread in threads) thread.Join();
                if (problems.Count > 0) throw problems[0];
                Console.WriteLine(
                    "     8 threads: {0} calls in {1} s; resident {2} KiB after a quarter, {3} at the end", calls, seconds, early, late);
                Want.True(calls > 100, "only " + calls + " calls");
                Want.True(early > 0 && late < early + MostGrowth, "resident memory went from " + early + " to " + late + " KiB");
            }
        }

        private const int Rows = 5;
        /// <summary>KiB that a collector may keep.</summary>
        private const int MostGrowth = 32 * 1024;

        private static int ResidentKiB()
        {
            var line = File.ReadAllLines("/proc/self/status").First(one => one.StartsWith("VmRSS:"));
            return int.Parse(new string(line.Where(char.IsDigit).ToArray()));
        }

        private static float[] Input(int d)
        {
            var x = new float[Rows * d];
            for (var i = 0; i < x.Length; i++) x[i] = (i * 13 % 37) - 18;
            return x;
        }

        private static Latents Encoded(Sae sae, int threads)
        {
            using (var encoder = sae.CreateEncoder(threads))
            {
                var room = encoder.CreateLatents(Rows);
                encoder.Encode(Input(encoder.DModel), room);
                return room;
            }
        }

        private static void Same(Latents expected, Latents found)
        {
            Want.True(expected.Counts.SequenceEqual(found.Counts), "counts differ");
            Want.True(expected.Indices.SequenceEqual(found.Indices), "indices differ");
            Want.True(expected.Values.SequenceEqual(found.Values), "values differ");
        }

        /// <summary>Calls of a warm encoder, of info, and of a warm tap leave nothing to collect.</summary>
        public static void NoAllocationInSteadyState()
        {
            using (var sae = Sae.Open(Given.Model("tiny")))
            using (var encoder = sae.CreateEncoder())
            using (var monitor = new Monitor())
            using (var tap = new Tap(monitor, monitor.AddSite("a", sae)))
            {
                var room = encoder.CreateLatents(1);
                var tags = new[] { new TokenTag(1, 0) };
                Action once = () =>
                {
                    encoder.Encode(Arguments.Residual, room);
                    if (sae.Info.DModel != 8) throw new Exception("info");
                    tap.Submit(Arguments.Residual, tags);
                };
                for (var i = 0; i < 1000; i++) once();
#if KRONSAE_ASYNC
                var before = GC.GetAllocatedBytesForCurrentThread();
                for (var i = 0; i < 1000; i++) once();
                Want.Equal(0L, GC.GetAllocatedBytesForCurrentThread() - before, "bytes of 1000 rounds");
#else
                // mono counts collections only: its nursery of 4 MiB would fill with 24 bytes a round, twice over.
                GC.Collect();
                var before = GC.CollectionCount(0);
                for (var i = 0; i < 400000; i++) once();
                Want.Equal(0, GC.CollectionCount(0) - before, "collections in 400,000 rounds");
#endif
            }
        }
    }
}
