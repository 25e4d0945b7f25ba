
"use strict";
(() => {
  // Everything that comes over the stream (names, labels, text of tokens) is somebody else's text: it is only ever put
  // into the document as textContent, and what is kept of it is bounded by these.
  const MOST_TOKENS = 512, MOST_REQUESTS = 8, MOST_LOG = 200, MOST_HISTORY = 121, MOST_LABELS = 65536;
  const QUIET = 10000, FIRST_WAIT = 1000, LONGEST_WAIT = 30000;

  const $ = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value, digits = 3) => value == null ? "–"
    : value === 0 ? "0"
    : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(digits)));
  const percent = (value) => value == null ? "–"
    : value === 0 ? "0 %" : value < 0.0001 ? "<0.01 %" : number(value * 100) + " %";
  const seconds = (value) => value == null ? "–"
    : value < 1e-3 ? number(value * 1e6) + " µs" : value < 1 ? number(value * 1e3) + " ms" : number(value) + " s";
  const bytes = (value) => value >= 1 << 30 ? number(value / (1 << 30)) + " GiB" : number(value / (1 << 20)) + " MiB";
  const span = (value) => value < 120 ? Math.round(value) + " s"
    : value < 7200 ? Math.round(value / 60) + " min" : number(value / 3600) + " h";

  // Control characters, and those that reorder or hide text, are shown as what they are.
  const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb]/g;
  const visible = (text) => text.replace(HIDDEN, (c) => c === "\n" ? "⏎" : c === "\t" ? "⇥"
    : "\\u{" + c.codePointAt(0).toString(16) + "}");

  // What is known of each site, by name; those that the monitor has no longer are forgotten.
  const sites = new Map();
  let current = null, paused = false, token = null, lastId = null, snapshot = null;

  class Site {
    constructor(name) {
      this.name = name; this.model = null; this.labels = new Map(); this.history = [];
      this.chosen = null; this.requests = new Map(); this.count = 0; this.pinned = null; this.missed = 0;
    }
    label(latent) { return this.labels.get(latent) || ""; }
    learn(labels) {
      if (this.labels.size > MOST_LABELS) this.labels.clear();
      for (const [latent, text] of Object.entries(labels)) this.labels.set(Number(latent), visible(text));
    }
    take(of, recent, now) {
      if (this.model !== of.model) {
        // Another model has other latents: nothing shown so far means the same any longer.
        this.forget(); this.labels.clear(); this.chosen = null; this.history = []; this.model = of.model;
      }
      this.learn(recent.labels); this.missed += recent.missed;
      this.history.push({ now, counters: of.counters, latency: of.latency.counts.slice(), encode: of.encode.counts.slice() });
      if (this.history.length > MOST_HISTORY) this.history.shift();
      for (const token of recent.tokens) this.add(token);
      if (this.chosen === null && of.strongest.length) this.chosen = of.strongest[0].latent;
    }
    forget() {
      this.requests.forEach((request) => request.block.remove());
      this.requests.clear(); this.count = 0; this.pinned = null;
    }
    add(token) {
      let request = this.requests.get(token.request);
      if (!request) {
        const block = make("div", "request"), title = make("h3"), flow = make("div", "flow");
        block.append(title, flow);
        request = { block, title, flow, shown: [] };
        this.requests.set(token.request, request);
        $("requests").prepend(block);
        block.hidden = this !== current;
      }
      // A position that comes again was taken back, with all after it.
      while (request.shown.length && request.shown.at(-1).token.position >= token.position) this.drop(request, true);
      const before = request.shown.at(-1);
      const hole = before ? token.position - before.token.position - 1 : 0;
      const nodes = [];
      if (hole > 0) {
        const mark = make("span", "hole", "⋯" + hole);
        mark.title = hole === 1 ? "1 token not seen" : hole + " tokens not seen";
        nodes.push(mark);
      }
      const known = token.text !== null;
      const text = known ? visible(token.text) : token.token >= 0 ? "#" + token.token : "·";
      const button = make("button", "tok" + (known ? "" : " id") + (token.flags & 1 ? " prompt" : ""), text || "∅");
      button.type = "button"; button.tabIndex = -1;
      nodes.push(button);
      if (known && token.text.endsWith("\n")) nodes.push(make("br"));
      request.flow.append(...nodes);
      const shown = { token, button, nodes };
      request.shown.push(shown); tokenOf.set(button, shown);
      this.count++;
      while (this.requests.size > MOST_REQUESTS) this.end(this.requests.keys().next().value);
      while (this.count > MOST_TOKENS) {
        const oldest = this.requests.keys().next().value;
        if (this.requests.get(oldest).shown.length) this.drop(this.requests.get(oldest), false);
        if (!this.requests.get(oldest).shown.length) this.end(oldest);
      }
    }
    drop(request, last) {
      const shown = last ? request.shown.pop() : request.shown.shift();
      shown.nodes.forEach((node) => node.remove());
      if (this.pinned === shown) this.pinned = null;
      this.count--;
    }
    end(id) {
      const request = this.requests.get(id);
      while (request.shown.length) this.drop(request, true);
      request.block.remove();
      this.requests.delete(id);
    }
    // Growth since about `back` seconds ago, a second each.
    rate(of, back) {
      const last = this.history.at(-1);
      const first = this.history.find((at) => last.now - at.now <= back * 1000);
      const time = (last.now - first.now) / 1000;
      return time > 0 ? Math.max(0, of(last.counters) - of(first.counters)) / time : null;
    }
  }
  const tokenOf = new WeakMap();

  // --- the chosen latent -------------------------------------------------------------------------------------------

  const valueOf = (token, latent) => {
    const at = token.indices.indexOf(latent);
    return at < 0 ? 0 : token.values[at] || 0;
  };
  const choose = (latent) => { if (current) { current.chosen = latent; colour(); latents(); detail(current.pinned); } };

  const colour = () => {
    if (!current) return;
    const latent = current.chosen;
    let most = 0;
    current.requests.forEach((request) => request.shown.forEach(({ token }) => { most = Math.max(most, valueOf(token, latent)); }));
    for (const [id, request] of current.requests) {
      let fires = 0;
      for (const { token, button } of request.shown) {
        const value = valueOf(token, latent);
        const heat = value > 0 ? (0.15 + 0.85 * value / most).toFixed(2) : "";
        if (button.dataset.heat !== heat) {
          button.dataset.heat = heat;
          button.classList.toggle("fires", value > 0);
          button.style.setProperty("--heat", heat || "0");
        }
        fires += value > 0;
      }
      request.title.textContent = `request ${id} · ${request.shown.length} tokens shown, latent active on ${fires}`;
    }
    if (document.activeElement !== $("chosen")) $("chosen").value = latent ?? "";
    $("chosen-label").textContent = latent === null ? "" : current.label(latent) || "no label";
    $("chosen-label").className = latent !== null && current.label(latent) ? "" : "muted";
    $("scale-end").textContent = most > 0 ? number(most) : "–";
  };

  const chip = (site, latent, value) => {
    const button = make("button", "chip", `${latent} ${site.label(latent)} `);
    button.append(make("b", "", number(value)));
    button.type = "button"; button.dataset.latent = latent;
    button.setAttribute("aria-pressed", String(site === current && site.chosen === latent));
    return button;
  };

  const detail = (shown) => {
    const box = $("detail");
    if (!shown) return;
    const { token } = shown;
    const line = make("p");
    line.append(make("b", "", token.text === null ? "(text not given)" : "“" + visible(token.text) + "”"));
    line.append(` · token ${token.token >= 0 ? token.token : "id not given"} · request ${token.request}, position `
      + `${token.position}${token.flags & 2 ? " · last of the prompt" : token.flags & 1 ? " · prompt" : ""} · `
      + (token.indices.length ? `${token.indices.length} active latents` : "no active latent"));
    const chips = make("ul", "chips");
    token.indices.slice(0, 64).forEach((latent, i) => {
      const item = make("li");
      item.append(chip(current, latent, token.values[i]));
      chips.append(item);
    });
    if (token.indices.length > 64) chips.append(make("li", "muted", `and ${token.indices.length - 64} weaker ones`));
    box.replaceChildren(line, chips);
  };
  const pin = (shown) => {
    if (current.pinned) { current.pinned.button.classList.remove("pinned"); current.pinned.button.tabIndex = -1; }
    current.pinned = shown;
    shown.button.classList.add("pinned"); shown.button.tabIndex = 0;
    detail(shown);
  };

  // --- latents against their baseline ------------------------------------------------------------------------------

  const row = (of, label, most, last) => {
    const line = make("tr"), name = make("td"), button = make("button", "link", of.latent + " ");
    button.type = "button"; button.dataset.latent = of.latent;
    button.setAttribute("aria-pressed", String(current.chosen === of.latent));
    if (label) button.append(make("small", "", label));
    name.append(button);
    line.append(name, make("td", "", percent(of.rate)), make("td", "", percent(of.calibrated_rate)));
    const cell = make("td");
    if (last !== undefined) cell.textContent = last;
    else {
      const bar = make("div", "bar"), fill = make("i");
      fill.style.width = (100 * of.rate / most || 0) + "%";
      bar.append(fill);
      if (of.calibrated_rate != null) {
        const mark = make("b");
        mark.style.left = `calc(${100 * of.calibrated_rate / most || 0}% - 1px)`;
        bar.append(mark);
        bar.title = of.calibrated_rate > 0 ? number(of.rate / of.calibrated_rate) + " times the baseline" : "never active in the calibration";
      }
      cell.append(bar);
    }
    line.append(cell);
    return line;
  };
  const replaceRows = (body, rows) => {
    // Whoever is on a button stays on it.
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.latent : null;
    body.replaceChildren(...rows);
    if (focused !== null) body.querySelector(`[data-latent="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  };
  const latents = () => {
    const of = siteNow();
    if (!of) return;
    const strongest = of.strongest.slice(0, 16);
    const most = Math.max(1e-9, ...strongest.map((latent) => Math.max(latent.rate, latent.calibrated_rate || 0)));
    replaceRows($("strongest"), strongest.map((latent) => row(latent, current.label(latent.latent), most)));
    $("latents-key").textContent = of.drift == null
      ? "Share of recent tokens. The model file has no calibration, so there is no baseline."
      : "Share of recent tokens; the mark is the calibration's share.";
    $("watched-part").hidden = !of.watched.length;
    replaceRows($("watched"), of.watched.map((watched) =>
      row(watched.of, visible(watched.label || ""), 1, number(watched.of.mean) + " × " + number(watched.of.count))));
  };

  // --- figures -----------------------------------------------------------------------------------------------------

  const quantile = (bounds, counts, share) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (!total) return null;
    let before = 0;
    for (let i = 0; i < counts.length; i++) {
      if (before + counts[i] >= share * total && counts[i]) {
        if (i >= bounds.length) return bounds.at(-1) ?? null;
        const from = i ? bounds[i - 1] : 0;
        return from + (bounds[i] - from) * (share * total - before) / counts[i];
      }
      before += counts[i];
    }
    return null;
  };
  const grown = (site, key, from, to) => {
    const a = site.history[from][key], b = site.history[to][key];
    return b.map((count, i) => Math.max(0, count - (a[i] ?? 0)));
  };
  // Keeps what is there, so that a reader, or a screen reader, is not interrupted each second.
  const list = (into, entries) => {
    while (into.children.length > entries.length) into.lastElementChild.remove();
    while (into.children.length < entries.length) {
      const box = make("div"), value = make("dd");
      value.append(make("span"), make("span", "note"));
      box.append(make("dt"), value);
      into.append(box);
    }
    entries.forEach(([name, text, note, alarm], i) => {
      const [dt, dd] = into.children[i].children;
      const put = (node, to) => { if (node.textContent !== to) node.textContent = to; };
      put(dt, name); put(dd.children[0], text); put(dd.children[1], note || "");
      into.children[i].classList.toggle("alarm", Boolean(alarm));
    });
  };
  const facts = (into, entries) => {
    while (into.children.length > entries.length * 2) into.lastElementChild.remove();
    while (into.children.length < entries.length * 2) into.append(make("dt"), make("dd"));
    entries.forEach(([name, text], i) => {
      into.children[2 * i].textContent = name; into.children[2 * i + 1].textContent = text;
    });
  };
  const figures = () => {
    const of = siteNow(), c = of.counters, site = current;
    const from = Math.max(0, site.history.length - 31), to = site.history.length - 1;
    const latency = grown(site, "latency", from, to), encode = grown(site, "encode", from, to);
    const capacity = of.taps.reduce((sum, tap) => sum + (tap.closed ? 0 : tap.capacity), 0);
    const speed = site.rate((counters) => counters.encoded, 5), dropping = site.rate((counters) => counters.dropped, 30);
    list($("tiles"), [
      ["Encoded", number(speed) + "/s", number(c.encoded) + " in all"],
      ["Dropped", number(c.dropped), c.submitted ? percent(c.dropped / c.submitted) + " of submitted" : "", dropping > 0],
      ["Not finite", number(c.not_finite), c.not_finite ? "rows with NaN or ∞" : "", c.not_finite > 0],
      ["Queue", capacity ? percent(c.queued / capacity) : "–", `${number(c.queued)} of ${number(capacity)}`, c.queued > 0.8 * capacity && capacity > 0],
      ["Latency", seconds(quantile(of.latency.bounds, latency, 0.5)), "99 %: " + seconds(quantile(of.latency.bounds, latency, 0.99))],
      ["Encode", seconds(quantile(of.encode.bounds, encode, 0.5)), "a token, median"],
      ["Active latents", number(of.l0), "mean of a token"],
      ["Drift", of.drift == null ? "–" : number(of.drift, 2), of.drift == null ? "not calibrated" : "0 same, 1 disjoint", of.drift > 0.2],
    ]);
    facts($("more"), [
      ["model", of.model], ["layer", of.layer ?? "not known"], ["latents", number(of.latents) + ", " + of.rule],
      ["submitted", number(c.submitted)], ["sampled out", number(c.sampled_out)],
      ["requests with state", number(of.requests) + (of.requests_evicted ? `, ${number(of.requests_evicted)} evicted` : "")],
      ["recorded", number(of.recorded) + (of.record_failures ? `, ${number(of.record_failures)} failed` : "")],
      ["events", number(snapshot.events) + (snapshot.events_lost ? `, ${number(snapshot.events_lost)} lost` : "")],
      ["memory", bytes(snapshot.memory)], ["CPU time", seconds(snapshot.cpu_seconds)],
      ["not shown here", number(site.missed) + " tokens"],
    ]);
    charts(site, of);
  };

  const chart = (svg, label, series, words) => {
    const most = Math.max(...series.flatMap((points) => points.map((value) => value ?? 0)), 0);
    while (svg.children.length < series.length) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      if (svg.children.length) line.setAttribute("class", "b");
      svg.append(line);
    }
    series.forEach((points, i) => {
      const at = (value, k) => `${(240 - 2 * (points.length - 1 - k)).toFixed(0)},${(56 - 52 * (value || 0) / (most || 1)).toFixed(1)}`;
      svg.children[i].setAttribute("points", points.map(at).join(" "));
    });
    label.textContent = most ? "top " + words(most) : "";
    svg.setAttribute("aria-label", series.map((points) => words(points.at(-1) ?? null)).join("; ") + ", highest " + words(most));
  };
  const charts = (site, of) => {
    const h = site.history, encoded = [], dropped = [], median = [], tail = [];
    for (let i = 1; i < h.length; i++) {
      const time = Math.max(0.001, (h[i].now - h[i - 1].now) / 1000);
      encoded.push(Math.max(0, h[i].counters.encoded - h[i - 1].counters.encoded) / time);
      dropped.push(Math.max(0, h[i].counters.dropped - h[i - 1].counters.dropped) / time);
      const counts = grown(site, "latency", i - 1, i);
      median.push(quantile(of.latency.bounds, counts, 0.5)); tail.push(quantile(of.latency.bounds, counts, 0.99));
    }
    chart($("flow"), $("flow-most"), [encoded, dropped], (value) => number(value) + "/s");
    chart($("delay"), $("delay-most"), [median, tail], seconds);
  };

  // --- rule log ----------------------------------------------------------------------------------------------------

  const log = (event) => {
    if (lastId !== null && event.id > lastId + 1) {
      const lost = event.id - lastId - 1;
      $("log").prepend(make("li", "muted", lost === 1 ? "1 event not shown" : `${number(lost)} events not shown`));
    }
    lastId = event.id;
    $("log-none")?.remove();
    const item = make("li"), line = make("div", "line");
    item.dataset.id = event.id; item.dataset.site = event.site;
    const time = make("time", "muted", new Date(event.time).toLocaleTimeString("en-GB"));
    time.dateTime = new Date(event.time).toISOString();
    line.append(time, make("span", "severity " + (["info", "warning", "critical"].includes(event.severity) ? event.severity : ""), event.severity),
      make("span", "name", visible(event.rule)));
    if (event.kind === "retracted") {
      line.append(make("span", "flag", "retracted"));
      const earlier = $("log").querySelector(`li[data-id="${Number(event.retracts)}"]`);
      if (earlier && !earlier.classList.contains("taken-back")) {
        earlier.classList.add("taken-back");
        earlier.querySelector(".line").append(make("span", "flag", "taken back"));
      }
    }
    if (event.gap) {
      const gap = make("span", "flag", "gap");
      gap.title = "Tokens of the rule's window were missing: dropped, or not finite";
      line.append(gap);
    }
    line.append(make("span", "muted", `request ${event.request}, position ${event.position}`
      + (event.token >= 0 ? `, token ${event.token}` : "") + ` · ${visible(event.site)} · ${event.model}`));
    item.append(line);
    if (event.latents.length) {
      const chips = make("ul", "chips");
      for (const { latent, value } of event.latents.slice(0, 32)) {
        const text = event.labels[latent] ? ` ${visible(event.labels[latent])}` : "";
        const one = make("li", "chip", `${latent}${text} `);
        one.append(make("b", "", number(value)));
        chips.append(one);
      }
      item.append(chips);
    }
    $("log").prepend(item);
    while ($("log").children.length > MOST_LOG) $("log").lastElementChild.remove();
    mark(item);
  };
  const mark = (item) => item.classList.toggle("other-site", item.dataset.site !== undefined && item.dataset.site !== current?.name);
  const rules = (of) => {
    $("rules").replaceChildren(...of.rules.map((rule) => {
      const item = make("li", "chip", visible(rule.rule) + " ");
      item.append(make("b", "", number(rule.matched)));
      if (rule.retracted) item.append(` (${number(rule.retracted)} retracted)`);
      return item;
    }));
  };

  // --- the whole ---------------------------------------------------------------------------------------------------

  const siteNow = () => snapshot && current ? snapshot.sites.find((site) => site.site === current.name) : null;
  const show = (name) => {
    current = sites.get(name) || null;
    sites.forEach((site) => site.requests.forEach((request) => { request.block.hidden = site !== current; }));
    $("log").querySelectorAll("li").forEach(mark);
  };
  const empty = () => {
    const of = siteNow();
    const say = (title, text, code) => {
      $("empty-title").textContent = title; $("empty-text").textContent = text; $("empty-code").textContent = code;
      $("empty").hidden = false;
    };
    if (!snapshot.sites.length) {
      say("No site yet", "The monitor runs, and has nothing to look at. Give it a site: a place in the model, and the "
        + "autoencoder that was trained there.", "kronsae_monitor_add_site(monitor, &site, sae, &id, &error);");
    } else if (of && !of.counters.submitted) {
      say("No token has come", "The site is ready. Make a tap for each thread that computes activations, and submit each "
        + "micro-batch; what is submitted appears here within a second.",
        "kronsae_tap_create(monitor, site, NULL, &tap, &error);\nkronsae_tap_submit(tap, &activations, tags, sizeof *tags, &accepted, &error);");
    } else $("empty").hidden = true;
  };
  const render = () => {
    if (!snapshot) return;
    const state = $("state");
    state.textContent = snapshot.state; state.className = "badge " + snapshot.state;
    $("facts").textContent = `version ${snapshot.version} · up ${span(snapshot.uptime)}`;
    notice(snapshot.failure ? "Failed: " + snapshot.failure : "");
    $("main").hidden = false; $("pause").hidden = false; $("door").hidden = true;
    const names = snapshot.sites.map((site) => site.site), select = $("site");
    if (names.length !== select.options.length || names.some((name, i) => select.options[i].value !== name)) {
      select.replaceChildren(...names.map((name) => {
        const option = make("option", "", visible(name));
        option.value = name;
        return option;
      }));
    }
    $("sites").hidden = !names.length;
    if (!current || !sites.has(current.name)) show(names[0]);
    if (current) select.value = current.name;
    document.querySelectorAll(".columns, #tiles").forEach((part) => { part.hidden = !current; });
    empty();
    const of = siteNow();
    if (of) { colour(); latents(); figures(); rules(of); }
    $("requests").querySelector(".none").hidden = Boolean(current && current.count);
    const first = current && !current.pinned && [...current.requests.values()].at(-1)?.shown[0];
    if (first) first.button.tabIndex = 0;
  };
  const tick = ({ snapshot: next, recent }) => {
    if (paused) {
      next.sites.forEach((of, i) => { const site = sites.get(of.site); if (site) site.missed += recent[i].tokens.length; });
      return;
    }
    snapshot = next;
    const now = next.unix_nanos / 1e6;
    next.sites.forEach((of, i) => {
      if (!sites.has(of.site)) sites.set(of.site, new Site(of.site));
      sites.get(of.site).take(of, recent[i], now);
    });
    const alive = new Set(next.sites.map((site) => site.site));
    for (const [name, site] of sites) if (!alive.has(name)) { site.forget(); sites.delete(name); }
    render();
  };
  const notice = (text) => { const box = $("notice"); if (box.textContent !== text) box.textContent = text; box.hidden = !text; };

  // --- the stream --------------------------------------------------------------------------------------------------

  // fetch rather than EventSource, which cannot send a header, and so would want the token in the address.
  const frame = (text) => {
    let kind = "", data = "";
    for (const line of text.split("\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (kind === "tick") tick(JSON.parse(data));
    else if (kind === "rule") log(JSON.parse(data));
  };
  const follow = async (onOpen) => {
    const breaker = new AbortController();
    let timer = setTimeout(() => breaker.abort(), QUIET);
    try {
      const headers = { Accept: "text/event-stream" };
      if (token !== null) headers.Authorization = "Bearer " + token;
      if (lastId !== null) headers["Last-Event-ID"] = String(lastId);
      const response = await fetch("events", { headers, cache: "no-store", credentials: "omit", signal: breaker.signal });
      if (response.status === 401) return "token";
      if (!response.ok) throw new Error((await response.text()).trim() || String(response.status));
      onOpen();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the server closed the connection");
        clearTimeout(timer); timer = setTimeout(() => breaker.abort(), QUIET);
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        parts.forEach(frame);
      }
    } finally { clearTimeout(timer); breaker.abort(); }
  };
  const lost = (error) => {
    $("state").textContent = "no connection"; $("state").className = "badge lost";
    const why = error.name === "AbortError" ? "nothing came for ten seconds" : error.message;
    notice(`No connection to the monitor (${why}). Trying again; what is shown is from before.`);
  };
  const live = async () => {
    let wait = FIRST_WAIT;
    for (;;) {
      try {
        if (await follow(() => { wait = FIRST_WAIT; }) === "token") {
          $("state").textContent = "locked"; $("state").className = "badge stopped";
          $("door").hidden = false; $("main").hidden = true; $("pause").hidden = true; $("sites").hidden = true;
          notice(token === null ? "" : "That token was not accepted.");
          $("token").focus();
          return;
        }
      } catch (error) { lost(error); }
      await new Promise((resume) => setTimeout(resume, wait));
      wait = Math.min(LONGEST_WAIT, wait * 2);
    }
  };

  $("door").addEventListener("submit", (event) => {
    event.preventDefault();
    token = $("token").value.trim(); $("token").value = "";
    $("door").hidden = true; notice("");
    live();
  });
  $("site").addEventListener("change", () => { show($("site").value); $("detail").replaceChildren(); render(); });
  $("only-site").addEventListener("change", () => $("log").classList.toggle("only-site", $("only-site").checked));
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused)); $("pause").textContent = paused ? "Go on" : "Pause";
  });
  $("chosen").addEventListener("input", () => {
    const latent = $("chosen").valueAsNumber, of = siteNow();
    if (of && Number.isInteger(latent) && latent >= 0 && latent < of.latents) choose(latent);
  });
  document.addEventListener("click", (event) => {
    const latent = event.target.closest("button[data-latent]");
    if (latent) choose(Number(latent.dataset.latent));
  });
  const requests = $("requests"), shownAt = (event) => tokenOf.get(event.target.closest(".tok"));
  requests.addEventListener("click", (event) => { const shown = shownAt(event); if (shown) pin(shown); });
  requests.addEventListener("focusin", (event) => { const shown = shownAt(event); if (shown) pin(shown); });
  requests.addEventListener("pointerover", (event) => { const shown = shownAt(event); if (shown && !current.pinned) detail(shown); });
  requests.addEventListener("keydown", (event) => {
    const all = [...requests.querySelectorAll(".request:not([hidden]) .tok")], at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && current?.pinned) {
      current.pinned.button.classList.remove("pinned"); current.pinned = null;
    }
  });
  live();
})();
