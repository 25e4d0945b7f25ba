// Latents against their baseline.

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
