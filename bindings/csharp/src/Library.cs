using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Kronsae.Native;

namespace Kronsae
{
    /// <summary>The shared library: which file it is, and its version.</summary>
    public static unsafe class Library
    {
        /// <summary>The ABI version these bindings are written for.</summary>
        public const uint AbiVersion = 0;

        private const int Now = 2;
        private static readonly object Lock = new object();
        private static volatile bool loaded;
        private static string path;

        /// <summary>The file that was loaded, as it was asked for.</summary>
        /// <exception cref="KronsaeLibraryException">It cannot be loaded.</exception>
        public static string Path
        {
            get
            {
                Load();
                return path;
            }
        }

        /// <summary>The version of the loaded library: "0.1.0".</summary>
        /// <exception cref="KronsaeLibraryException">It cannot be loaded.</exception>
        public static string Version
        {
            get
            {
                Load();
                return VersionOfLoaded();
            }
        }

        /// <summary>The library's short name of a status; "unknown status" for one it does not know.</summary>
        /// <exception cref="KronsaeLibraryException">The library cannot be loaded.</exception>
        public static string NameOf(Status status)
        {
            Load();
            return NameInLoaded((int)status);
        }

        /// <summary>
        /// Asks the system to let this process use AMX, the matrix tiles of recent Intel CPUs: encoders made afterwards encode
        /// large batches several times as fast. The permission is the whole process's, for good.
        /// </summary>
        /// <exception cref="KronsaeException">Unsupported: the CPU has none, or the system refuses; everything works without.
        /// </exception>
        public static void RequestAmx()
        {
            Load();
            AskForAmx();
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void AskForAmx() { KronsaeException.Check(Methods.kronsae_request_amx(out var error), error); }

        // mono binds the imports of a method when it compiles it: these must be compiled when the library is loaded.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static string VersionOfLoaded() { return Text.From(Methods.kronsae_version_string()); }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static string NameInLoaded(int status) { return Text.From(Methods.kronsae_status_name(status)); }

        /// <summary>Loads the library unless it is loaded. Any thread may call it; constructors do.</summary>
        /// <exception cref="KronsaeLibraryException">No file could be loaded, and where it was looked for; or its ABI version
        /// is another one.</exception>
        public static void Load()
        {
            if (loaded) return;
            lock (Lock)
            {
                if (loaded) return;
                var tried = new List<string>();
                foreach (var candidate in Candidates())
                {
                    var handle = dlopen(Text.ToC(candidate, "path"), Now);
                    if (handle == IntPtr.Zero)
                    {
                        tried.Add(candidate + ": " + Text.From(dlerror()));
                        continue;
                    }
                    Verify(handle, candidate);
                    path = candidate;
                    loaded = true;
                    return;
                }
                throw new KronsaeLibraryException(
                    "libkronsae.so.0 could not be loaded; install it, or name the file in the environment variable "
                    + "KRONSAE_LIBRARY. It was looked for at:\n  " + string.Join("\n  ", tried.ToArray()));
            }
        }

        /// <summary>A file that was named is the only candidate: another one instead would be a surprise.</summary>
        private static IEnumerable<string> Candidates()
        {
            var named = Environment.GetEnvironmentVariable("KRONSAE_LIBRARY");
            if (!string.IsNullOrEmpty(named))
            {
                yield return System.IO.Path.GetFullPath(named);
                yield break;
            }
            var here = AppDomain.CurrentDomain.BaseDirectory;
            var packaged = System.IO.Path.Combine(here, "runtimes", "linux-x64", "native");
            foreach (var folder in new[] { packaged, here })
            {
                foreach (var file in new[] { Methods.Name, "libkronsae.so" }) yield return System.IO.Path.Combine(folder, file);
            }
            yield return Methods.Name;
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void Verify(IntPtr handle, string candidate)
        {
            var abi = dlsym(handle, Text.ToC("kronsae_abi_version", "name"));
            var version = dlsym(handle, Text.ToC("kronsae_version_string", "name"));
            if (abi == IntPtr.Zero || version == IntPtr.Zero)
            {
                throw new KronsaeLibraryException(candidate + ": has no kronsae_abi_version: it is not libkronsae");
            }
            var found = Marshal.GetDelegateForFunctionPointer<AbiVersionFunction>(abi)();
            if (found != AbiVersion)
            {
                throw new KronsaeLibraryException(
                    candidate + ": has ABI version " + found + ", these bindings need " + AbiVersion
                    + ": install a library and bindings of the same version");
            }
            // The imports are bound by the library's SONAME. That they reach this very file is worth a look: a host may have
            // loaded another one before.
            byte* bound;
            try
            {
                bound = Methods.kronsae_version_string();
            }
            catch (DllNotFoundException e)
            {
                throw new KronsaeLibraryException(candidate + ": its SONAME is not " + Methods.Name + " (" + e.Message + ")");
            }
            if (bound != Marshal.GetDelegateForFunctionPointer<VersionStringFunction>(version)())
            {
                throw new KronsaeLibraryException(
                    candidate + ": another " + Methods.Name + " is loaded in this process already; name that one in KRONSAE_LIBRARY");
            }
        }

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate uint AbiVersionFunction();

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate byte* VersionStringFunction();

        [DllImport("libdl.so.2")] private static extern IntPtr dlopen(byte[] file, int flags);
        [DllImport("libdl.so.2")] private static extern IntPtr dlsym(IntPtr library, byte[] name);
        [DllImport("libdl.so.2")] private static extern byte* dlerror();
    }
}
