using System;
using System.Diagnostics;
using System.IO;
using System.Linq;

namespace Kronsae.Tests
{
    /// <summary>A library that is missing, no library, or another one: each in a process of its own.</summary>
    public static class Loading
    {
        /// <summary>Opens a model, and prints what came of it.</summary>
        internal static int Probe(string model)
        {
            try
            {
                using (var sae = Sae.Open(model)) Console.WriteLine("opened " + Library.Version + " " + Library.Path);
            }
            catch (KronsaeException e)
            {
                Console.WriteLine(e.GetType().Name + " " + (int)e.Status + " " + e.Message.Replace("\n", " "));
            }
            return 0;
        }

        private static string With(string library, string mode = "")
        {
            // This very process's runtime and program, up to the program's own arguments.
            var words = File.ReadAllText("/proc/self/cmdline").Split('\0');
            var program = Array.FindIndex(words, word => word.EndsWith(".exe"));
            var arguments = words.Skip(1).Take(program).Concat(new[] { "--probe", Given.Model("tiny") });
            var start = new ProcessStartInfo(
                Process.GetCurrentProcess().MainModule.FileName, string.Join(" ", arguments.Select(a => "\"" + a + "\"")));
            start.UseShellExecute = false;
            start.RedirectStandardOutput = true;
            start.EnvironmentVariables["KRONSAE_LIBRARY"] = library;
            start.EnvironmentVariables["FALSE_LIBRARY"] = mode;
            using (var process = Process.Start(start))
            {
                var text = process.StandardOutput.ReadToEnd();
                process.WaitForExit();
                Want.Equal(0, process.ExitCode, "exit status, after `" + text + "`");
                return text.Trim();
            }
        }

        public static void ThisLibrary()
        {
            Want.True(With(Library.Path).StartsWith("opened " + Library.Version), "found " + With(Library.Path));
        }

        public static void MissingLibrary()
        {
            var named = With("/nowhere/libkronsae.so.0");
            Want.True(named.StartsWith("KronsaeLibraryException") && named.Contains("/nowhere/libkronsae.so.0"), named);
            var searched = With("");
            // A machine may have one installed.
            if (searched.StartsWith("opened")) return;
            Want.True(searched.StartsWith("KronsaeLibraryException") && searched.Contains("KRONSAE_LIBRARY"), searched);
            Want.True(searched.Contains("runtimes/linux-x64/native/libkronsae.so.0"), searched);
        }

        public static void NoLibrary()
        {
            var text = With(Path.Combine(Given.Repository, "README.md"));
            Want.True(text.StartsWith("KronsaeLibraryException"), text);
            var other = With("/lib/x86_64-linux-gnu/libm.so.6");
            Want.True(other.Contains("it is not libkronsae") || other.Contains("could not be loaded"), other);
        }

        public static void AnotherAbiVersion()
        {
            var text = With(Given.FalseLibrary, "abi");
            Want.True(text.StartsWith("KronsaeLibraryException") && text.Contains("ABI version 99"), text);
        }

        /// <summary>A status of a later library is kept.</summary>
        public static void UnknownStatus()
        {
            Want.Equal("KronsaeException 4242 a later failure", With(Given.FalseLibrary, "status"), "a later library");
        }
    }
}
