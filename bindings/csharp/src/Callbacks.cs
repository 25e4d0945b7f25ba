using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;

namespace Kronsae.Native
{
    /// <summary>
    /// What a monitor calls back, behind trampolines that let no exception into the library: it is caught, counted and
    /// reported.
    /// </summary>
    internal sealed unsafe class Callbacks
    {
        // Made once and never collected, so that their native stubs are always there.
        private static readonly EventFunction EventTrampoline = OnEvent;
        private static readonly TokenTextFunction TextTrampoline = OnTokenText;

        // Weak: a delegate that refers to its monitor must not keep it from being collected. The handle of the monitor holds
        // this object as long as callbacks may come.
        private GCHandle self;
        private volatile Action<Event> onEvent;
        private volatile Func<int, string> tokenText;
        private long failures;

        internal Callbacks() { self = GCHandle.Alloc(this, GCHandleType.WeakTrackResurrection); }

        internal long Failures => Interlocked.Read(ref failures);
        internal Exception Last { get; private set; }
        internal Action<Exception> Failed { get; set; }

        internal void SetEvent(MonitorHandle monitor, Action<Event> callback)
        {
            var before = onEvent;
            if (callback != null) onEvent = callback;
            var status = Methods.kronsae_monitor_set_event_callback(
                monitor, callback == null ? null : EventTrampoline, GCHandle.ToIntPtr(self), out var error);
            if (status != 0) onEvent = before;
            KronsaeException.Check(status, error);
            onEvent = callback;
        }

        internal void SetTokenText(MonitorHandle monitor, Func<int, string> callback)
        {
            var before = tokenText;
            if (callback != null) tokenText = callback;
            var status = Methods.kronsae_monitor_set_token_text(
                monitor, callback == null ? null : TextTrampoline, GCHandle.ToIntPtr(self), out var error);
            if (status != 0) tokenText = before;
            KronsaeException.Check(status, error);
            tokenText = callback;
        }

        /// <summary>When the monitor is destroyed.</summary>
        internal void Free()
        {
            if (self.IsAllocated) self.Free();
        }

        private static Callbacks Find(IntPtr userData) { return GCHandle.FromIntPtr(userData).Target as Callbacks; }

        private static void OnEvent(IntPtr userData, kronsae_event* value)
        {
            Callbacks found = null;
            try
            {
                found = Find(userData);
                found?.onEvent?.Invoke(new Event(value));
            }
            catch (Exception e)
            {
                found?.Report(e);
            }
        }

        private static UIntPtr OnTokenText(IntPtr userData, int token, byte* buffer, UIntPtr capacity)
        {
            Callbacks found = null;
            try
            {
                found = Find(userData);
                var text = found?.tokenText?.Invoke(token);
                if (string.IsNullOrEmpty(text)) return UIntPtr.Zero;
                var bytes = Encoding.UTF8.GetBytes(text);
                Marshal.Copy(bytes, 0, (IntPtr)buffer, (int)Math.Min((ulong)bytes.Length, (ulong)capacity));
                return (UIntPtr)bytes.Length;
            }
            catch (Exception e)
            {
                found?.Report(e);
                return UIntPtr.Zero;
            }
        }

        private void Report(Exception e)
        {
            Interlocked.Increment(ref failures);
            Last = e;
            try
            {
                Failed?.Invoke(e);
            }
            catch (Exception)
            {
                // A report that fails is counted like any other; there is nobody else to tell.
                Interlocked.Increment(ref failures);
            }
        }
    }
}

namespace Kronsae
{
    /// <summary>The library's log, which is silent until a callback is set.</summary>
    public static unsafe class Logging
    {
        private static readonly Native.LogFunction Trampoline = OnLog;
        private static volatile Action<Log, string> callback;
        private static long failures;

        /// <summary>How often a callback threw.</summary>
        public static long CallbackFailures => Interlocked.Read(ref failures);

        /// <summary>Sets the one log callback, or removes it (null). It runs on threads that call the library, several at
        /// once; what it throws is caught and counted.</summary>
        public static void SetCallback(Action<Log, string> value)
        {
            Library.Load();
            Set(value);
        }

        // Compiled when the library is loaded, as Sae says.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Set(Action<Log, string> value)
        {
            if (value != null) callback = value;
            var status = Native.Methods.kronsae_set_log_callback(value == null ? null : Trampoline, IntPtr.Zero, out var error);
            KronsaeException.Check(status, error);
            callback = value;
        }

        private static void OnLog(IntPtr userData, int level, byte* message)
        {
            try
            {
                callback?.Invoke((Log)level, Native.Text.From(message));
            }
            catch (Exception)
            {
                Interlocked.Increment(ref failures);
            }
        }
    }
}
