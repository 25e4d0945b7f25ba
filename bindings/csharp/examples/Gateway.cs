using System;
using System.Globalization;
using System.IO;
using System.Net;
using System.Text;
using System.Threading;
using Kronsae;

/// <summary>
/// An HTTP gateway: `Gateway MODEL RULES PREFIX`, with a prefix such as "http://127.0.0.1:8080/".
///
/// POST /encode?request=7&amp;position=0: the body is rows of d_model little-endian F32; answers a JSON array of rows, each
/// an array of [latent, value], and hands the rows to the monitor. GET /events: the monitor's events, a JSON object a line,
/// until the client goes away. GET /metrics: Prometheus text.
/// </summary>
internal sealed class Gateway
{
    private const int MostBytes = 16 << 20;
    private readonly Kronsae.Monitor monitor;
    private readonly Tap tap;
    private readonly int capacity;

    private Gateway(Kronsae.Monitor monitor, Site site, int capacity)
    {
        this.monitor = monitor;
        this.capacity = capacity;
        tap = new Tap(monitor, site);
    }

    private static int Main(string[] arguments)
    {
        if (arguments.Length != 3)
        {
            Console.Error.WriteLine("usage: Gateway MODEL RULES PREFIX");
            return 2;
        }
        try
        {
            using (var sae = Sae.Open(arguments[0]))
            using (var monitor = new Kronsae.Monitor())
            using (var listener = new HttpListener())
            {
                var site = monitor.AddSite("gateway", sae);
                monitor.LoadRules(arguments[1]);
                var gateway = new Gateway(monitor, site, sae.Info.Capacity);
                listener.Prefixes.Add(arguments[2]);
                listener.Start();
                Console.WriteLine("listening at " + arguments[2]);
                while (true) gateway.Accept(listener.GetContext());
            }
        }
        catch (KronsaeException e)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }

    /// <summary>Encoding happens here, on the one thread of the tap; a stream of events gets a thread of its own.</summary>
    private void Accept(HttpListenerContext context)
    {
        var path = context.Request.HttpMethod + " " + context.Request.Url.AbsolutePath;
        if (path == "GET /events")
        {
            var stream = new Thread(() => Guarded(context, () => Stream(context.Response))) { IsBackground = true };
            stream.Start();
            return;
        }
        Guarded(context, () =>
        {
            if (path == "POST /encode") Encode(context);
            else if (path == "GET /metrics") Write(context.Response, 200, "text/plain; version=0.0.4", monitor.MetricsText());
            else Write(context.Response, 404, "text/plain", "there are POST /encode, GET /events and GET /metrics\n");
        });
    }

    /// <summary>What is wrong with a request is the client's to know; a client that goes away ends it.</summary>
    private static void Guarded(HttpListenerContext context, Action serve)
    {
        try
        {
            try
            {
                serve();
            }
            catch (ArgumentException e)
            {
                Write(context.Response, 400, "text/plain", e.Message + "\n");
            }
            catch (KronsaeException e)
            {
                Write(context.Response, 500, "text/plain", e.Message + "\n");
            }
        }
        catch (Exception e) when (e is IOException || e is HttpListenerException || e is ObjectDisposedException)
        {
            context.Response.Abort();
        }
    }

    private void Encode(HttpListenerContext context)
    {
        var request = Number(context.Request.QueryString["request"], "request");
        var position = (int)Number(context.Request.QueryString["position"], "position");
        var activations = Body(context.Request);
        var tags = new TokenTag[activations.Length / tap.DModel];
        for (var i = 0; i < tags.Length; i++) tags[i] = new TokenTag((ulong)request, position + i);
        var latents = new Latents(tags.Length, capacity);
        tap.Encode(activations, tags, latents);
        var json = new StringBuilder("[");
        for (var row = 0; row < tags.Length; row++)
        {
            json.Append(row == 0 ? "[" : ",[");
            for (var i = 0; i < latents.Counts[row]; i++)
            {
                var at = row * capacity + i;
                json.Append(i == 0 ? "[" : ",[").Append(latents.Indices[at]).Append(',');
                json.Append(latents.Values[at].ToString("R", CultureInfo.InvariantCulture)).Append(']');
            }
            json.Append(']');
        }
        Write(context.Response, 200, "application/json", json.Append("]\n").ToString());
    }

    private static uint Number(string text, string name)
    {
        if (uint.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var number) && number <= int.MaxValue) return number;
        throw new ArgumentException(name + " is `" + text + "`, expected a number");
    }

    private static float[] Body(HttpListenerRequest request)
    {
        var length = request.ContentLength64;
        if (length < 0 || length > MostBytes || length % 4 != 0)
        {
            throw new ArgumentException("Content-Length is " + length + ", expected a multiple of 4 up to " + MostBytes);
        }
        var bytes = new byte[length];
        for (var at = 0; at < bytes.Length;)
        {
            var read = request.InputStream.Read(bytes, at, bytes.Length - at);
            if (read == 0) throw new ArgumentException("the body ends after " + at + " bytes of " + length);
            at += read;
        }
        var activations = new float[bytes.Length / 4];
        Buffer.BlockCopy(bytes, 0, activations, 0, bytes.Length);
        return activations;
    }

    private void Stream(HttpListenerResponse response)
    {
        response.ContentType = "application/x-ndjson";
        response.SendChunked = true;
        using (var output = response.OutputStream)
        {
            foreach (var one in monitor.Events())
            {
                // Rules' and sites' names may hold any character.
                var line = "{\"id\":" + one.Id + ",\"kind\":\"" + one.Kind + "\",\"rule\":" + Quoted(one.Rule) + ",\"site\":"
                    + Quoted(one.Site) + ",\"request\":" + one.Request + ",\"position\":" + one.Position + "}\n";
                var bytes = Encoding.UTF8.GetBytes(line);
                output.Write(bytes, 0, bytes.Length);
                output.Flush();
            }
        }
    }

    private static string Quoted(string text)
    {
        var json = new StringBuilder("\"");
        foreach (var c in text)
        {
            if (c == '"' || c == '\\' || c < ' ') json.Append("\\u").Append(((int)c).ToString("x4"));
            else json.Append(c);
        }
        return json.Append('"').ToString();
    }

    private static void Write(HttpListenerResponse response, int status, string type, string text)
    {
        var bytes = Encoding.UTF8.GetBytes(text);
        response.StatusCode = status;
        response.ContentType = type;
        response.ContentLength64 = bytes.Length;
        using (var output = response.OutputStream) output.Write(bytes, 0, bytes.Length);
    }
}
