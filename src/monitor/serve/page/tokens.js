// Tokens coloured by the chosen latent, and one token's latents.

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
