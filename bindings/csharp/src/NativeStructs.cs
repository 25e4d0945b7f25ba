using System;
using System.Runtime.InteropServices;

// Field for field what include/kronsae.h declares, names included: the tests compare every offset with the C compiler's.
namespace Kronsae.Native
{
#pragma warning disable 649, 169 // Fields that only the library reads or writes.
    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_sae_options
    {
        public uint struct_size, encoder_only;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_sae_info
    {
        public uint struct_size;
        public int encoder_kind, selection_kind, weights_dtype;
        public uint has_decoder, has_calibration, has_latent_thresholds, calibration_levels;
        public float theta, output_scale;
        public UIntPtr d_model, latents, encoder_rows, heads, @base, extension, k, max_latents, capacity;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_encoder_options
    {
        public uint struct_size, threads;
        public int path;
        public uint reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_activations
    {
        public uint struct_size;
        public int dtype;
        public void* data;
        public UIntPtr rows, d_model, row_stride;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_activations_mut
    {
        public uint struct_size;
        public int dtype;
        public void* data;
        public UIntPtr rows, d_model, row_stride;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_latents
    {
        public uint struct_size, reserved;
        public UIntPtr rows, capacity;
        public uint* counts, indices;
        public float* values;
        public uint* active;
        public byte* row_flags;
        public UIntPtr skipped_rows, truncated_rows;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_monitor_options
    {
        public uint struct_size, flags, workers, encoder_threads, requests, events, recent_tokens, watched;
        public int nice;
        public float cpu_share, least_tokens_per_second;
        public uint reserved;
        public double half_life_tokens;
        public uint* cpus;
        public UIntPtr n_cpus, memory_limit;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_monitor_status
    {
        public uint struct_size;
        public int state;
        public ulong submitted, encoded, sampled_out, dropped, not_finite, queued, events, events_lost, memory;
        public double cpu_seconds, uptime;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_site_options
    {
        public uint struct_size, flags, layer, reserved;
        public byte* name;
        public uint* watch;
        public UIntPtr n_watch, d_model;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_tap_options
    {
        public uint struct_size;
        public int sampling;
        public uint nth;
        public int dtype;
        public UIntPtr capacity, controls;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_event
    {
        public uint struct_size;
        public int kind, severity;
        public uint gap;
        public int position, token;
        public ulong id, unix_nanos, request, retracts;
        public byte* site, model, rule;
        public EventLatent* latents;
        public UIntPtr n_latents;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_serve_options
    {
        public uint struct_size, clients;
        public byte* address, token;
        public byte** hosts;
        public UIntPtr n_hosts;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct kronsae_recorder_options
    {
        public uint struct_size, flags;
        public int dtype;
        public uint shard_seconds;
        public ulong shard_tokens, most_bytes, most_tokens;
        public byte* folder, model, hook;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct kronsae_recorder_status
    {
        public uint struct_size, recording;
        public ulong written, failures;
    }
#pragma warning restore 649, 169
}

namespace Kronsae
{
    /// <summary>A latent to add to activations, and how much of it in units of latent values.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct SteerTerm
    {
        /// <summary>The latent's index, below F.</summary>
        public uint Latent;
        /// <summary>How much is added: a row changes by coefficient * output scale * decoder row.</summary>
        public float Coefficient;
    }

    /// <summary>Whose token a row of activations is.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct TokenTag
    {
        /// <summary>The request, in the host's numbering.</summary>
        public ulong Request;
        /// <summary>Its position in the request's sequence, from 0.</summary>
        public int Position;
        /// <summary>The token's id in the LLM's vocabulary; -1 if unknown.</summary>
        public int Token;
        /// <summary>Bits about it.</summary>
        public Token Flags;
        private readonly uint Reserved;

        /// <summary>A token of a request.</summary>
        public TokenTag(ulong request, int position, int token = -1, Token flags = Kronsae.Token.None)
        {
            Request = request;
            Position = position;
            Token = token;
            Flags = flags;
            Reserved = 0;
        }
    }

    /// <summary>A latent of the token that completed a match.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct EventLatent
    {
        /// <summary>Its index, below F.</summary>
        public uint Latent;
        /// <summary>Its value on the token; 0 if it is not active.</summary>
        public float Value;
    }
}
