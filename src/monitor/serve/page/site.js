// A site: what it was last said to be, and the tokens of it that are shown.

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
    // A line that a token begins in its middle is begun before it.
    if (token.text?.slice(0, -1).includes("\n")) nodes.push(make("br"));
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
