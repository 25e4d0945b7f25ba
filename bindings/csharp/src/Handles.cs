using System;
using System.Runtime.InteropServices;

namespace Kronsae.Native
{
    /// <summary>A pointer of the library: freed once, after the last call that uses it, at the latest by the finalizer.</summary>
    internal abstract class Handle : SafeHandle
    {
        protected Handle() : base(IntPtr.Zero, true) { }

        public override bool IsInvalid => handle == IntPtr.Zero;
    }

    /// <summary>
    /// A call, or several: the object is not freed before this is disposed of, though another thread disposes of the handle. A
    /// handle that was disposed of throws ObjectDisposedException here.
    /// </summary>
    internal readonly struct Use : IDisposable
    {
        private readonly SafeHandle handle;
        private readonly bool held;

        internal Use(SafeHandle handle)
        {
            this.handle = handle;
            held = false;
            handle.DangerousAddRef(ref held);
        }

        /// <summary>Valid until this is disposed of.</summary>
        internal IntPtr Pointer => handle.DangerousGetHandle();

        public void Dispose()
        {
            if (held) handle.DangerousRelease();
        }
    }

    internal sealed class ErrorHandle : Handle
    {
        internal ErrorHandle(IntPtr error) { SetHandle(error); }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_error_destroy(handle);
            return true;
        }
    }

    internal sealed class SaeHandle : Handle
    {
        public SaeHandle() { }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_sae_destroy(handle);
            return true;
        }
    }

    internal sealed class EncoderHandle : Handle
    {
        public EncoderHandle() { }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_encoder_destroy(handle);
            return true;
        }
    }

    internal sealed class MonitorHandle : Handle
    {
        public MonitorHandle() { }

        /// <summary>What the library's callbacks find; lives as long as the monitor.</summary>
        internal readonly Callbacks Callbacks = new Callbacks();

        protected override bool ReleaseHandle()
        {
            // Waits for a callback in progress; none comes after it.
            Methods.kronsae_monitor_destroy(handle);
            Callbacks.Free();
            return true;
        }
    }

    internal sealed class TapHandle : Handle
    {
        public TapHandle() { }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_tap_destroy(handle);
            return true;
        }
    }

    internal sealed class RecorderHandle : Handle
    {
        public RecorderHandle() { }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_recorder_destroy(handle);
            return true;
        }
    }

    internal sealed class EventBatchHandle : Handle
    {
        public EventBatchHandle() { }

        protected override bool ReleaseHandle()
        {
            Methods.kronsae_event_batch_destroy(handle);
            return true;
        }
    }
}
