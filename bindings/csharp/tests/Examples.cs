using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace Kronsae.Tests
{
    /// <summary>The examples beside this program, run as a reader would run them.</summary>
    public static class Examples
    {
        /// <summary>A program of this runtime, with this program's options of it.</summary>
        internal static Process Start(string program, params string[] arguments)
        {
            var words = File.ReadAllText("/proc/self/cmdline").Split('\0');
            var ours = Array.FindIndex(words, word => word.EndsWith(".exe"));
            var there = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(words[ours])), program);
            var all = words.Skip(1).Take(ours - 1).Concat(new[] { there }).Concat(arguments);
            var start = new ProcessStartInfo(
                Process.GetCurrentProcess().MainModule.FileName, string.Join(" ", all.Select(a => "\"" + a + "\"")));
            start.UseShellExecute = false;
            start.RedirectStandardOutput = true;
            start.RedirectStandardError = true;
            return Process.Start(start);
        }

        /// <summary>The README shows the example that is compiled, word for word, and it prints latents.</summary>
        public static void Readme()
        {
            var folder = Path.Combine(Given.Repository, "bindings", "csharp");
            var source = File.ReadAllText(Path.Combine(folder, "examples", "Example.cs"));
            var readme = File.ReadAllText(Path.Combine(folder, "README.md"));
            Want.True(readme.Contains("```csharp\n" + source + "```"), "README.md does not show examples/Example.cs");
            using (var process = Start("Example.exe", Given.Model("tiny")))
            {
                var text = process.StandardOutput.ReadToEnd();
                process.WaitForExit();
                Want.Equal(0, process.ExitCode, "exit status");
                Want.Equal(3, text.Split('\n').Count(line => line.StartsWith("latent ")), "lines of `" + text + "`");
            }
        }

        /// <summary>The gateway encodes what is posted, streams what its rules find, and refuses what does not fit.</summary>
        public static void GatewayServes()
        {
            var rules = Path.GetTempFileName();
            File.WriteAllText(rules, "[[rule]]\nname = \"seen\"\nwhen = { latent = 0, above = 5.0 }\n");
            var free = new TcpListener(IPAddress.Loopback, 0);
            free.Start();
            var address = "http://127.0.0.1:" + ((IPEndPoint)free.LocalEndpoint).Port + "/";
            free.Stop();
            var gateway = Start("Gateway.exe", Given.Model("tiny"), rules, address);
            try
            {
                var first = gateway.StandardOutput.ReadLine();
                // CoreCLR 3.1's HttpListener wants OpenSSL 1.x, and ends the process where there is none.
                var said = first == null ? gateway.StandardError.ReadToEnd() : "";
                if (said.Contains("No usable version of libssl")) throw new MissingTool("libssl 1.0 or 1.1 is missing");
                Want.Equal("listening at " + address, first, "first line, after `" + said + "`");
                var body = new byte[64];
                Buffer.BlockCopy(Arguments.Residual, 0, body, 0, 32);
                Buffer.BlockCopy(Arguments.Residual, 0, body, 32, 32);
                var rows = Post(address + "encode?request=7&position=3", body);
                Want.True(rows.StartsWith("[[[") && rows.Contains("[0,6]"), "answered " + rows);
                var events = WebRequest.CreateHttp(address + "events");
                using (var answer = events.GetResponse())
                using (var lines = new StreamReader(answer.GetResponseStream()))
                {
                    var line = lines.ReadLine();
                    Want.True(line.Contains("\"request\":7,\"position\":3}"), "event " + line);
                    Want.True(line.Contains("\"rule\":\"seen\""), "event " + line);
                    Want.True(lines.ReadLine().Contains("\"position\":4}"), "second event");
                }
                foreach (var wrong in new[] { "encode?request=7&position=x", "encode?position=1", "encode" })
                {
                    Want.Equal(400, Refused(() => Post(address + wrong, body)), wrong);
                }
                Want.Equal(400, Refused(() => Post(address + "encode?request=7&position=9", new byte[20])), "20 bytes");
                Want.Equal(404, Refused(() => Post(address + "nothing", body)), "nothing");
                Want.True(Post(address + "encode?request=7&position=9", body).StartsWith("[[["), "it goes on");
            }
            finally
            {
                if (!gateway.HasExited) gateway.Kill();
                gateway.WaitForExit();
                gateway.Dispose();
                File.Delete(rules);
            }
        }

        private static string Post(string address, byte[] body)
        {
            var request = WebRequest.CreateHttp(address);
            request.Method = "POST";
            request.ContentLength = body.Length;
            using (var stream = request.GetRequestStream()) stream.Write(body, 0, body.Length);
            using (var answer = request.GetResponse())
            using (var text = new StreamReader(answer.GetResponseStream(), Encoding.UTF8)) return text.ReadToEnd();
        }

        private static int Refused(Func<string> post)
        {
            var e = Want.Throws<WebException>(() => post());
            return (int)((HttpWebResponse)e.Response).StatusCode;
        }
    }
}
