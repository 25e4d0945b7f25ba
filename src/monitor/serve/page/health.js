// Figures and charts.

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
  const a = from === to ? [] : site.history[from][key], b = site.history[to][key];
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
    ["Encoded", speed == null ? "–" : number(speed) + "/s", number(c.encoded) + " in all"],
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
    ["memory", bytes(snapshot.memory) + (snapshot.device_memory ? `, ${bytes(snapshot.device_memory)} on devices` : "")], ["CPU time", seconds(snapshot.cpu_seconds)],
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
