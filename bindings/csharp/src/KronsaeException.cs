using System;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>A call of the library failed. The message says what was found and what was expected.</summary>
    public class KronsaeException : Exception
    {
        /// <summary>Why, as the library numbers it; numbers of later libraries are kept.</summary>
        public Status Status { get; }

        /// <summary>A failure of that status.</summary>
        public KronsaeException(Status status, string message) : base(message) { Status = status; }

        /// <summary>Throws if a call failed, and frees its error.</summary>
        internal static void Check(int status, IntPtr error)
        {
            if (status != 0) throw From(status, error);
        }

        private static unsafe KronsaeException From(int status, IntPtr error)
        {
            string message;
            using (var owned = new ErrorHandle(error))
            {
                message = error == IntPtr.Zero ? null : Text.From(Methods.kronsae_error_message(owned));
            }
            return Of((Status)status, string.IsNullOrEmpty(message) ? "the library failed with status " + status : message);
        }

        internal static KronsaeException Of(Status status, string message)
        {
            switch (status)
            {
                case Status.InvalidArgument: return new KronsaeArgumentException(message);
                case Status.Io: return new KronsaeIOException(message);
                case Status.Format: return new KronsaeFormatException(message);
                case Status.Stopped: return new KronsaeStoppedException(message);
                case Status.Timeout: return new KronsaeTimeoutException(message);
                case Status.Full: return new KronsaeFullException(message);
                default: return new KronsaeException(status, message);
            }
        }
    }

    /// <summary>The library refused an argument.</summary>
    public sealed class KronsaeArgumentException : KronsaeException
    {
        internal KronsaeArgumentException(string message) : base(Status.InvalidArgument, message) { }
    }

    /// <summary>A file could not be opened, read or written.</summary>
    public sealed class KronsaeIOException : KronsaeException
    {
        internal KronsaeIOException(string message) : base(Status.Io, message) { }
    }

    /// <summary>A file is not what it claims to be.</summary>
    public sealed class KronsaeFormatException : KronsaeException
    {
        internal KronsaeFormatException(string message) : base(Status.Format, message) { }
    }

    /// <summary>The model or monitor behind an object was disposed of or stopped.</summary>
    public sealed class KronsaeStoppedException : KronsaeException
    {
        internal KronsaeStoppedException(string message) : base(Status.Stopped, message) { }
    }

    /// <summary>What was waited for did not happen in time; it may be waited for again.</summary>
    public sealed class KronsaeTimeoutException : KronsaeException
    {
        internal KronsaeTimeoutException(string message) : base(Status.Timeout, message) { }
    }

    /// <summary>A queue has no room at the moment; it may be tried again.</summary>
    public sealed class KronsaeFullException : KronsaeException
    {
        internal KronsaeFullException(string message) : base(Status.Full, message) { }
    }

    /// <summary>The shared library could not be loaded, or is of another ABI version.</summary>
    public sealed class KronsaeLibraryException : KronsaeException
    {
        internal KronsaeLibraryException(string message) : base(Status.Unsupported, message) { }
    }
}
