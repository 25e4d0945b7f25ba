using System;
using System.Collections.Generic;
using System.Reflection;

namespace Kronsae.Tests
{
    /// <summary>What tests are given: the repository, the models of examples/make_model.rs, what C says of layouts, a false
    /// library.</summary>
    internal static class Given
    {
        internal static string Repository, Models, Layout, FalseLibrary;

        internal static string Model(string name) { return System.IO.Path.Combine(Models, name + ".safetensors"); }
    }

    internal static class Program
    {
        private static int Main(string[] arguments)
        {
            if (arguments.Length == 2 && arguments[0] == "--layout-source")
            {
                Console.Write(Layouts.Source(arguments[1]));
                return 0;
            }
            if (arguments.Length == 2 && arguments[0] == "--probe") return Loading.Probe(arguments[1]);
            if (arguments.Length != 4)
            {
                Console.Error.WriteLine("usage: Tests REPOSITORY MODELS LAYOUT FALSE-LIBRARY");
                return 2;
            }
            Given.Repository = arguments[0];
            Given.Models = arguments[1];
            Given.Layout = arguments[2];
            Given.FalseLibrary = arguments[3];
            return Run(
                typeof(Golden), typeof(Layouts), typeof(Arguments),
#if KRONSAE_SPAN
                typeof(Spans),
#endif
                typeof(Lifetimes), typeof(Monitoring), typeof(Loading), typeof(Examples));
        }

        /// <summary>Every public static method without parameters of these types is a test.</summary>
        private static int Run(params Type[] types)
        {
            int passed = 0, failed = 0, ignored = 0;
            // There, what cannot be tested is a fault of the machine that somebody must mend.
            var ci = Environment.GetEnvironmentVariable("CI") == "true";
            foreach (var type in types)
            {
                foreach (var test in type.GetMethods(BindingFlags.Public | BindingFlags.Static | BindingFlags.DeclaredOnly))
                {
                    try
                    {
                        test.Invoke(null, null);
                        passed++;
                        Console.WriteLine("ok   " + type.Name + "." + test.Name);
                    }
                    catch (TargetInvocationException e) when (e.InnerException is MissingTool && !ci)
                    {
                        ignored++;
                        Console.WriteLine("skip " + type.Name + "." + test.Name + ": " + e.InnerException.Message);
                    }
                    catch (TargetInvocationException e)
                    {
                        failed++;
                        Console.WriteLine("FAIL " + type.Name + "." + test.Name + ": " + e.InnerException);
                    }
                }
            }
            Console.WriteLine("test result: {0}. {1} passed; {2} failed; {3} ignored", failed == 0 ? "ok" : "FAILED", passed, failed, ignored);
            return failed == 0 ? 0 : 1;
        }
    }

    /// <summary>What the runtime needs is not on this machine.</summary>
    internal sealed class MissingTool : Exception
    {
        internal MissingTool(string message) : base(message) { }
    }

    /// <summary>Checks that say what was found.</summary>
    internal static class Want
    {
        internal static void True(bool holds, string what)
        {
            if (!holds) throw new Exception(what);
        }

        internal static void Equal<T>(T expected, T found, string what)
        {
            if (!EqualityComparer<T>.Default.Equals(expected, found))
            {
                throw new Exception(what + ": found " + found + ", expected " + expected);
            }
        }

        internal static E Throws<E>(Action action, string part = "") where E : Exception
        {
            try
            {
                action();
            }
            catch (E e)
            {
                True(e.Message.Contains(part), "the message `" + e.Message + "` lacks `" + part + "`");
                return e;
            }
            throw new Exception("nothing was thrown, expected " + typeof(E).Name);
        }
    }
}
