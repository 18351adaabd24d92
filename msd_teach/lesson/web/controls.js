// Elements, controls and the theme of the page.
function element(parent, tag, attributes = {}, text = "") {
  const node = parent.appendChild(document.createElement(tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// JupyterLab would take arrow keys and letters for its own; it asks the focused element itself, not its parents.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "" };

function button(parent, text, onclick) {
  const node = element(parent, "button", { type: "button", ...OWN_KEYS }, text);
  node.onclick = onclick;
  return node;
}

function slider(parent, { label, say, ...attributes }, oninput) {
  const box = element(parent, "label"), caption = element(box, "span", {}, label), value = element(caption, "b");
  const input = element(box, "input", { type: "range", ...OWN_KEYS, ...attributes });
  const tell = () => {
    value.textContent = say(+input.value);
    input.setAttribute("aria-valuetext", value.textContent);
  };
  input.oninput = () => { tell(); oninput(+input.value); };
  tell();
  return input;
}

// A slider whose zero is `base`; 40 positions are a factor of ten.
function logSlider(parent, label, base, [min, max], oninput) {
  const at = (position) => base * 10 ** (position / 40);
  return slider(parent, { label, min, max, value: 0, say: (v) => at(v).toPrecision(2) }, (v) => oninput(at(v)));
}

// The theme of the page: the book says it on <html>, JupyterLab on <body>; elsewhere light ink means a dark page.
function isDark(root) {
  const said = document.documentElement.dataset.theme, lab = document.body.dataset.jpThemeLight;
  if (said) return said === "dark";
  if (lab) return lab === "false";
  const [r, g, b] = getComputedStyle(root.parentElement).color.match(/[\d.]+/g).map(Number);
  return 0.3 * r + 0.6 * g + 0.1 * b > 140;
}

function watchTheme(refresh) {
  const watch = new MutationObserver(refresh);
  watch.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  watch.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
}
