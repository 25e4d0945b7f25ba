using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.RegularExpressions;
using Kronsae.Native;

namespace Kronsae.Tests
{
    /// <summary>Structs and numbers against include/kronsae.h: nothing is listed twice, the header is read.</summary>
    public static class Layouts
    {
        // Not named after the header's: they are public.
        private static readonly Dictionary<string, Type> Public = new Dictionary<string, Type>
        {
            { "kronsae_steer_term", typeof(SteerTerm) },
            { "kronsae_token_tag", typeof(TokenTag) },
            { "kronsae_event_latent", typeof(EventLatent) },
        };

        // Encoding on a device is for C and C++ alone: its buffers, stream and workspace are the device's.
        private static bool IsOfDevices(string name) => Regex.IsMatch(name, "^(kronsae_(device_|encode_cuda)|COMPUTE_)");

        /// <summary>A C program that prints `struct field offset` and `struct = size` of all structs of the header.</summary>
        internal static string Source(string header)
        {
            var text = Regex.Replace(File.ReadAllText(header), @"/\*.*?\*/", "", RegexOptions.Singleline);
            var c = new StringBuilder("#include <kronsae.h>\n#include <stdio.h>\nint main(void) {\n");
            foreach (Match m in Regex.Matches(text, @"typedef struct (kronsae_\w+) \{(.*?)\} \1;", RegexOptions.Singleline))
            {
                var name = m.Groups[1].Value;
                if (IsOfDevices(name)) continue;
                c.AppendLine($"    printf(\"{name} = %zu\\n\", sizeof({name}));");
                foreach (Match field in Regex.Matches(m.Groups[2].Value, @"(\w+);"))
                {
                    var f = field.Groups[1].Value;
                    c.AppendLine($"    printf(\"{name} {f} %zu\\n\", offsetof({name}, {f}));");
                }
            }
            return c.Append("    return 0;\n}\n").ToString();
        }

        /// <summary>Sizes and offsets of all structs, fields in both directions.</summary>
        public static void StructsAreWhatTheCCompilerSays()
        {
            var lines = File.ReadAllLines(Given.Layout);
            Want.True(lines.Length > 100, "the C program printed only " + lines.Length + " lines");
            var fields = new Dictionary<string, int>();
            var offsets = 0;
            foreach (var words in lines.Select(line => line.Split(' ')))
            {
                if (!Public.TryGetValue(words[0], out var type)) type = typeof(kronsae_latents).Assembly.GetType("Kronsae.Native." + words[0]);
                Want.True(type != null, "no struct " + words[0]);
                if (words[1] == "=")
                {
                    Want.Equal(int.Parse(words[2]), Marshal.SizeOf(type), words[0] + " size");
                    fields[words[0]] = type.GetFields(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic).Length;
                    continue;
                }
                var name = Public.ContainsKey(words[0]) ? words[1].Substring(0, 1).ToUpper() + words[1].Substring(1) : words[1];
                Want.Equal(int.Parse(words[2]), (int)Marshal.OffsetOf(type, name), words[0] + "." + words[1]);
                fields[words[0]]--;
                offsets++;
            }
            foreach (var pair in fields) Want.Equal(0, pair.Value, pair.Key + ": fields that C does not have");
            Want.True(offsets > 90, "only " + offsets + " offsets");
        }

        /// <summary>Every number of the header is in its enum under its name, and no enum has more.</summary>
        public static void NumbersAreTheHeaders()
        {
            var header = File.ReadAllText(Path.Combine(Given.Repository, "include", "kronsae.h"));
            var enums = new[]
            {
                Tuple.Create("STATUS", typeof(Status)), Tuple.Create("DTYPE", typeof(Dtype)),
                Tuple.Create("ENCODER", typeof(EncoderKind)), Tuple.Create("SELECTION", typeof(Selection)),
                Tuple.Create("LOG", typeof(Log)), Tuple.Create("ROW", typeof(Row)),
                Tuple.Create("MONITOR_STATE", typeof(MonitorState)), Tuple.Create("SAMPLING", typeof(Sampling)),
                Tuple.Create("EVENT", typeof(EventKind)), Tuple.Create("SEVERITY", typeof(Severity)),
                Tuple.Create("METRICS", typeof(Metrics)), Tuple.Create("RECORD", typeof(Record)),
                Tuple.Create("TOKEN", typeof(Token)), Tuple.Create("PATH", typeof(EncoderPath)),
            };
            // None is of no enum, but for versions, sizes, and flags that are properties here.
            foreach (Match m in Regex.Matches(header, @"^#define KRONSAE_(\w+) (\d+)$", RegexOptions.Multiline))
            {
                var name = m.Groups[1].Value;
                if (IsOfDevices(name) || Regex.IsMatch(name, "^(VERSION_|ABI_VERSION|MONITOR_SCHED_IDLE|SITE_|ADDRESS_CAPACITY)")) continue;
                Want.True(enums.Any(one => name.StartsWith(one.Item1 + "_")), "KRONSAE_" + name + " is of no enum here");
            }
            foreach (var pair in enums)
            {
                var found = new SortedDictionary<string, long>();
                foreach (Match m in Regex.Matches(header, "#define KRONSAE_" + pair.Item1 + @"_([A-Z0-9_]+) (\d+)\n"))
                {
                    if (m.Groups[1].Value == "TEXT_MOST") continue;
                    found[m.Groups[1].Value.Replace("_", "")] = long.Parse(m.Groups[2].Value);
                }
                var ours = new SortedDictionary<string, long>();
                foreach (var value in Enum.GetValues(pair.Item2))
                {
                    if (value.ToString() != "None") ours[value.ToString().ToUpperInvariant()] = Convert.ToInt64(value);
                }
                Want.Equal(string.Join(" ", found), string.Join(" ", ours), pair.Item1);
            }
        }

        /// <summary>Every function of the header is imported, and no other.</summary>
        public static void FunctionsAreTheHeaders()
        {
            var header = Regex.Replace(
                File.ReadAllText(Path.Combine(Given.Repository, "include", "kronsae.h")), @"/\*.*?\*/", "", RegexOptions.Singleline);
            var declared = Regex.Matches(header, @"^(?!typedef)\w[\w \*]*[ \*](kronsae_\w+)\(", RegexOptions.Multiline).Cast<Match>();
            var expected = declared.Select(m => m.Groups[1].Value).Where(n => !IsOfDevices(n)).OrderBy(n => n, StringComparer.Ordinal);
            var methods = typeof(Methods).GetMethods(BindingFlags.Static | BindingFlags.NonPublic | BindingFlags.Public);
            var found = methods.Select(m => m.Name).Where(n => n.StartsWith("kronsae_")).OrderBy(n => n, StringComparer.Ordinal);
            Want.Equal(string.Join(" ", expected), string.Join(" ", found), "functions");
        }

        /// <summary>Every import has the parameters of the header's function, of the same size and kind, in their order.</summary>
        public static void SignaturesAreTheHeaders()
        {
            var header = Regex.Replace(
                File.ReadAllText(Path.Combine(Given.Repository, "include", "kronsae.h")), @"/\*.*?\*/", "", RegexOptions.Singleline);
            var methods = typeof(Methods).GetMethods(BindingFlags.Static | BindingFlags.NonPublic | BindingFlags.Public);
            var seen = 0;
            foreach (Match m in Regex.Matches(
                header, @"^(?!typedef)(\w[\w \*]*[ \*])(kronsae_\w+)\(([^)]*)\);", RegexOptions.Multiline))
            {
                if (IsOfDevices(m.Groups[2].Value)) continue;
                var method = methods.Single(one => one.Name == m.Groups[2].Value);
                var parameters = m.Groups[3].Value == "void" ? new string[0] : m.Groups[3].Value.Split(',');
                // The last word is the parameter's name.
                var expected = parameters.Select(p => Kind(Regex.Replace(p.Trim(), @"\w+$", "")));
                var found = method.GetParameters().Select(p => Kind(p.ParameterType));
                Want.Equal(string.Join(", ", expected), string.Join(", ", found), method.Name);
                Want.Equal(Kind(m.Groups[1].Value), Kind(method.ReturnType), method.Name + " returns");
                seen++;
            }
            Want.True(seen > 40, "only " + seen + " functions");
        }

        private static string Kind(string c)
        {
            var type = c.Trim();
            if (type.EndsWith("*") || type.EndsWith("_callback")) return "pointer";
            switch (type)
            {
                case "void": return "nothing";
                case "size_t": return "size";
                case "uint32_t": return "4 bytes, unsigned";
                case "uint64_t": return "8 bytes, unsigned";
                case "int32_t": return "4 bytes";
            }
            // An enumeration, all of which are int32_t.
            return Regex.IsMatch(type, @"^kronsae_\w+$") ? "4 bytes" : "unknown: " + type;
        }

        private static string Kind(Type type)
        {
            var pointer = type.IsPointer || type.IsByRef || type == typeof(IntPtr) || typeof(SafeHandle).IsAssignableFrom(type)
                || typeof(Delegate).IsAssignableFrom(type);
            if (pointer) return "pointer";
            if (type == typeof(void)) return "nothing";
            if (type == typeof(UIntPtr)) return "size";
            if (type == typeof(uint)) return "4 bytes, unsigned";
            if (type == typeof(ulong)) return "8 bytes, unsigned";
            return type == typeof(int) ? "4 bytes" : "unknown: " + type;
        }

        /// <summary>The library has a name for each status, and an exception keeps one that nobody knows.</summary>
        public static void StatusesRoundTrip()
        {
            var names = new HashSet<string>();
            foreach (Status status in Enum.GetValues(typeof(Status)))
            {
                Want.True(names.Add(Library.NameOf(status)), status + " shares a name");
                Want.Equal(status, KronsaeException.Of(status, "x").Status, "exception");
            }
            Want.True(!names.Contains("unknown status"), "the library does not know one of ours");
            Want.Equal("unknown status", Library.NameOf((Status)4242), "4242");
            Want.Equal((Status)4242, Want.Throws<KronsaeException>(() => KronsaeException.Check(4242, IntPtr.Zero), "4242").Status, "");
        }
    }
}
