// The rule log.

const held = [];
// What has come, shown or not: from where to go on after a lost connection.
const latestId = () => held.length ? held.at(-1).id : lastId;
const hear = (event) => {
  if (!paused) return log(event);
  if (held.length && event.id === held.at(-1).id) return;
  held.push(event);
  if (held.length > MOST_LOG) held.shift();
};
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
  const here = of.rules.map((rule) => {
    const item = make("li", "chip", visible(rule.rule) + " ");
    item.append(make("b", "", number(rule.matched)));
    if (rule.retracted) item.append(` (${number(rule.retracted)} retracted)`);
    return item;
  });
  // Said at every site: a name that is nowhere belongs to none.
  const nowhere = snapshot.unbound_rules.map((rule) => {
    const item = make("li", "chip waiting", `${visible(rule.rule)} waits for site ${visible(rule.site)}`);
    item.title = "The rule is loaded, and names a site that this monitor does not have (yet)";
    return item;
  });
  $("rules").replaceChildren(...here, ...nowhere);
};
