using System;

namespace Kronsae
{
    /// <summary>What a call did. Later libraries may return numbers that are not listed here; they are kept as they are.</summary>
    public enum Status
    {
        /// <summary>Success.</summary>
        Ok = 0,
        /// <summary>An argument is wrong: null, misaligned, too short, out of range.</summary>
        InvalidArgument = 1,
        /// <summary>The operating system refused to open or read a file.</summary>
        Io = 2,
        /// <summary>A file is not what it claims to be.</summary>
        Format = 3,
        /// <summary>The request is valid but this build, CPU or model cannot serve it.</summary>
        Unsupported = 4,
        /// <summary>Memory could not be allocated.</summary>
        OutOfMemory = 5,
        /// <summary>The object this one depends on was destroyed or stopped.</summary>
        Stopped = 6,
        /// <summary>An earlier internal error was caught inside this object; it can only be disposed of.</summary>
        Poisoned = 7,
        /// <summary>The process was forked after this object was made.</summary>
        Forked = 8,
        /// <summary>A bug inside the library was caught.</summary>
        Internal = 9,
        /// <summary>What was waited for did not happen in the given time; it may be waited for again.</summary>
        Timeout = 10,
        /// <summary>A bounded queue has no room at the moment; it may be tried again.</summary>
        Full = 11,
        /// <summary>A GPU or its driver failed.</summary>
        Device = 12,
    }

    /// <summary>An element type, little-endian.</summary>
    public enum Dtype
    {
        /// <summary>IEEE 754 binary32.</summary>
        F32 = 1,
        /// <summary>IEEE 754 binary16, as ushort.</summary>
        F16 = 2,
        /// <summary>The upper half of a binary32, as ushort.</summary>
        Bf16 = 3,
    }

    /// <summary>How an encoder turns pre-activations into latents.</summary>
    public enum EncoderKind
    {
        /// <summary>KronSAE: heads of base and extension rows.</summary>
        Kron = 1,
        /// <summary>An ordinary SAE: one row a latent.</summary>
        Dense = 2,
    }

    /// <summary>Which latents of a token are reported.</summary>
    public enum Selection
    {
        /// <summary>The k strongest positive latents.</summary>
        Topk = 1,
        /// <summary>Every latent above a threshold, at most max_latents.</summary>
        Threshold = 2,
    }

    /// <summary>How an encoder finds its results.</summary>
    public enum EncoderPath
    {
        /// <summary>Whichever is faster, by a measured rule.</summary>
        Auto = 0,
        /// <summary>All rows of the encoder are computed exactly.</summary>
        Plain = 1,
        /// <summary>An int8 copy of the encoder tells which rows can matter, with proven bounds. Same results.</summary>
        Screened = 2,
        /// <summary>As screened, with bounds that hold only very likely: now and then a latent may be missing.</summary>
        Fast = 3,
    }

    /// <summary>How grave a log message is.</summary>
    public enum Log
    {
        /// <summary>A bug inside the library was caught.</summary>
        Error = 1,
        /// <summary>Something was ignored that the caller should know of.</summary>
        Warn = 2,
        /// <summary>Rare events of normal work.</summary>
        Info = 3,
    }

    /// <summary>Bits about an encoded row.</summary>
    [Flags]
    public enum Row : byte
    {
        /// <summary>Nothing to say.</summary>
        None = 0,
        /// <summary>Something was not finite; the row has no latents.</summary>
        NotFinite = 1,
        /// <summary>More latents were active than were kept.</summary>
        Truncated = 2,
    }

    /// <summary>What a monitor is doing.</summary>
    public enum MonitorState
    {
        /// <summary>Workers encode what taps take in.</summary>
        Running = 1,
        /// <summary>It was stopped.</summary>
        Stopped = 2,
        /// <summary>A bug was caught in a worker.</summary>
        Failed = 3,
    }

    /// <summary>Which tokens of a tap are encoded.</summary>
    public enum Sampling
    {
        /// <summary>Every token.</summary>
        Every = 1,
        /// <summary>Tokens whose position is a multiple of n.</summary>
        EveryNth = 2,
        /// <summary>Tokens with <see cref="Token.LastPrompt"/>.</summary>
        LastPrompt = 3,
    }

    /// <summary>Bits of a token.</summary>
    [Flags]
    public enum Token : uint
    {
        /// <summary>A generated token.</summary>
        None = 0,
        /// <summary>It belongs to a prompt.</summary>
        Prompt = 1,
        /// <summary>The last of a prompt.</summary>
        LastPrompt = 2,
    }

    /// <summary>What an event says.</summary>
    public enum EventKind
    {
        /// <summary>A rule matched.</summary>
        Matched = 1,
        /// <summary>Tokens that an earlier match rests on were taken back.</summary>
        Retracted = 2,
    }

    /// <summary>How much a match matters, as the rule's author says.</summary>
    public enum Severity
    {
        /// <summary>Worth knowing.</summary>
        Info = 1,
        /// <summary>Worth looking at.</summary>
        Warning = 2,
        /// <summary>Worth being woken for.</summary>
        Critical = 3,
    }

    /// <summary>A text form of metrics.</summary>
    public enum Metrics
    {
        /// <summary>Prometheus text format 0.0.4.</summary>
        Prometheus = 1,
        /// <summary>OpenMetrics 1.0.</summary>
        Openmetrics = 2,
    }

    /// <summary>Bits of a recording.</summary>
    [Flags]
    public enum Record : uint
    {
        /// <summary>Activations alone.</summary>
        None = 0,
        /// <summary>Token ids are written too: they are what users said.</summary>
        TokenIds = 1,
        /// <summary>The tokens' text is written too, where there is any.</summary>
        Text = 2,
        /// <summary>Tokens at position 0 are recorded too.</summary>
        Position0 = 4,
    }
}
