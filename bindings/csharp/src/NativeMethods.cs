using System;
using System.Runtime.InteropServices;

// The assembly's own folder is not searched by the runtime: which file is loaded is decided in Library alone.
[assembly: DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
[assembly: System.Runtime.CompilerServices.InternalsVisibleTo("Kronsae.Tests")]
[assembly: System.Runtime.CompilerServices.InternalsVisibleTo("Kronsae.Bench")]

namespace Kronsae.Native
{
    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal unsafe delegate void LogFunction(IntPtr userData, int level, byte* message);

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal unsafe delegate void EventFunction(IntPtr userData, kronsae_event* value);

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal unsafe delegate UIntPtr TokenTextFunction(IntPtr userData, int token, byte* buffer, UIntPtr capacity);

    /// <summary>
    /// The functions of include/kronsae.h. Whoever makes a first handle calls Library.Load before. Those that are called for
    /// every token take pointers alone, so that runtimes call them without a stub that converts arguments; see Use.
    /// </summary>
    internal static unsafe class Methods
    {
        // The SONAME of the file that Library has loaded by then, under which the system's loader finds it again.
        internal const string Name = "libkronsae.so.0";
        private const CallingConvention C = CallingConvention.Cdecl;

        [DllImport(Name, CallingConvention = C)] internal static extern uint kronsae_abi_version();
        [DllImport(Name, CallingConvention = C)] internal static extern uint kronsae_version_number();
        [DllImport(Name, CallingConvention = C)] internal static extern byte* kronsae_version_string();
        [DllImport(Name, CallingConvention = C)] internal static extern byte* kronsae_status_name(int status);
        [DllImport(Name, CallingConvention = C)] internal static extern int kronsae_error_status(IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern byte* kronsae_error_message(ErrorHandle error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_error_destroy(IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_set_log_callback(LogFunction callback, IntPtr userData, out IntPtr error);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_sae_open(byte* path, kronsae_sae_options* options, out SaeHandle sae, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_sae_open_bytes(
            byte* data, UIntPtr size, kronsae_sae_options* options, out SaeHandle sae, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_sae_get_info(IntPtr sae, kronsae_sae_info* info, IntPtr* error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_sae_config_json(SaeHandle sae, out byte* text, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_sae_source(SaeHandle sae, byte* key, out byte* text, out IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_sae_destroy(IntPtr sae);
        [DllImport(Name, CallingConvention = C)] internal static extern int kronsae_request_amx(out IntPtr error);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_encoder_create(
            SaeHandle sae, kronsae_encoder_options* options, out EncoderHandle encoder, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_encode(
            IntPtr encoder, kronsae_activations* activations, kronsae_latents* latents, IntPtr* error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_encoder_destroy(IntPtr encoder);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_decode(
            SaeHandle sae, kronsae_latents* latents, kronsae_activations_mut* activations, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_steer(
            SaeHandle sae, kronsae_activations_mut* activations, SteerTerm* terms, UIntPtr count, UIntPtr size, out IntPtr error);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_create(
            kronsae_monitor_options* options, out MonitorHandle monitor, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_get_status(
            MonitorHandle monitor, kronsae_monitor_status* status, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_flush(MonitorHandle monitor, uint milliseconds, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_stop(MonitorHandle monitor, uint milliseconds, out IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_monitor_destroy(IntPtr monitor);
        // The model may be NULL, which a SafeHandle cannot say.
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_add_site(
            MonitorHandle monitor, kronsae_site_options* options, IntPtr sae, out uint site, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_replace_sae(MonitorHandle monitor, uint site, SaeHandle sae, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_load_rules(MonitorHandle monitor, byte* path, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_set_rules(MonitorHandle monitor, byte* toml, UIntPtr size, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_load_labels(MonitorHandle monitor, uint site, byte* path, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_set_event_callback(
            MonitorHandle monitor, EventFunction callback, IntPtr userData, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_set_token_text(
            MonitorHandle monitor, TokenTextFunction callback, IntPtr userData, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_metrics(
            MonitorHandle monitor, int form, byte* buffer, UIntPtr capacity, out UIntPtr size, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_snapshot_json(
            MonitorHandle monitor, byte* buffer, UIntPtr capacity, out UIntPtr size, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_serve(
            MonitorHandle monitor, kronsae_serve_options* options, byte* bound, UIntPtr capacity, out IntPtr error);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_monitor_poll_events(
            MonitorHandle monitor, UIntPtr most, uint milliseconds, out EventBatchHandle batch, out IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern UIntPtr kronsae_event_batch_count(EventBatchHandle batch);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_event_batch_get(
            EventBatchHandle batch, UIntPtr index, kronsae_event* value, out IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_event_batch_destroy(IntPtr batch);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_tap_create(
            MonitorHandle monitor, uint site, kronsae_tap_options* options, out TapHandle tap, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_tap_submit(
            IntPtr tap, kronsae_activations* activations, TokenTag* tags, UIntPtr tagSize, UIntPtr* accepted, IntPtr* error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_tap_encode(
            IntPtr tap, kronsae_activations* activations, TokenTag* tags, UIntPtr tagSize, kronsae_latents* latents,
            UIntPtr* accepted, IntPtr* error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_tap_end_request(IntPtr tap, ulong request, IntPtr* error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_tap_rewind(IntPtr tap, ulong request, int position, IntPtr* error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_tap_destroy(IntPtr tap);

        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_recorder_start(
            MonitorHandle monitor, uint site, kronsae_recorder_options* options, out RecorderHandle recorder, out IntPtr error);
        [DllImport(Name, CallingConvention = C)]
        internal static extern int kronsae_recorder_get_status(
            RecorderHandle recorder, kronsae_recorder_status* status, out IntPtr error);
        [DllImport(Name, CallingConvention = C)] internal static extern void kronsae_recorder_destroy(IntPtr recorder);
    }
}
