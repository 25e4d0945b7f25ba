// The whole, the stream, and what the reader does.

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
  const broken = snapshot.sites.flatMap((site) => site.taps.filter((tap) => tap.failure && !tap.closed).map((tap) => [site, tap]))[0];
  notice(snapshot.failure ? "Failed: " + snapshot.failure
    : broken ? `Tap ${broken[1].tap} of ${visible(broken[0].site)}: ${broken[1].failure}; what it is given is dropped` : "");
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

// fetch rather than EventSource, which cannot send a header, and so would want the token in the address.
const frame = (text) => {
  let kind = "", data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (kind === "tick") tick(JSON.parse(data));
  else if (kind === "rule") hear(JSON.parse(data));
};
const follow = async (onOpen) => {
  const breaker = new AbortController();
  let timer = setTimeout(() => breaker.abort(), QUIET);
  try {
    const headers = { Accept: "text/event-stream" };
    if (token !== null) headers.Authorization = "Bearer " + token;
    if (latestId() !== null) headers["Last-Event-ID"] = String(latestId());
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
  if (!paused) held.splice(0).forEach(log);
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
