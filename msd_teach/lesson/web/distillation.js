// Many points move by x ← x + η (target − x); the method decides the target, and nothing else.
const METHODS = {
  SDS: { level: "noise σ", colour: 1, target: (field, [x, y], { normal }) => {
    const z = [x + field.lambda * normal(), y + field.lambda * normal()], [mx, my] = field.shift(...z);
    return [z[0] + mx, z[1] + my];  // D(x + σn; σ)
  } },
  "mean shift": { level: "bandwidth λ", colour: 0, target: (field, [x, y]) => {
    const [mx, my] = field.shift(x, y);
    return [x + mx, y + my];  // D(x; λ)
  } },
  MSD: { level: "bandwidth λ", colour: 2, target: (field, [x, y], random) => field.draw(x, y, random) },  // y ~ q_λ
};
const STEPS = 150, TAIL = 151, LAST = 0.01;

// mulberry32 and Box and Muller: the same run in every page.
function randomness(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return { uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()) };
}

function distillation(root, { components, bounds, bandwidth, starts, entropy, label }) {
  const density = backdrop(components), truth = smoothed(components, 0);
  let method = "mean shift", level = bandwidth, eta = 0.2, anneal = true, step = 0, left = 0, playing = false, last = 0;
  let random, points, field;

  const levelAt = (k) => anneal ? level * (1 - (1 - LAST) * Math.min(1, k / STEPS)) : level;
  function restart() {
    step = 0;
    left = STEPS;
    random = randomness(1);
    points = starts.map((at) => [at]);
    field = smoothed(components, levelAt(0));
  }

  function advance() {
    const { target } = METHODS[method];
    for (const path of points) {
      const x = path.at(-1), y = target(field, x, random);
      path.push(x.map((v, i) => v + eta * (y[i] - v)));
      if (path.length > TAIL) path.shift();
    }
    step++;
    field = smoothed(components, levelAt(step));
    if (--left <= 0) playing = false;
  }

  function tell() {
    const loss = points.reduce((sum, path) => sum - truth.shift(...path.at(-1))[2], 0) / points.length;
    status.setAttribute("aria-live", playing ? "off" : "polite");
    status.textContent = `mean −log p = ${loss.toFixed(2)} nats (samples of p: ${entropy.toFixed(2)})`.replaceAll(" -", " −");
    counter.textContent = `step ${step} · ${METHODS[method].level.at(-1)} = ${field.lambda.toPrecision(2)}`;
    play.textContent = playing ? "Pause" : "Play";
  }

  // Without motion a run is shown at its end.
  function go() {
    playing = !calm();
    while (!playing && left > 0) advance();
    tell();
    view.refresh();
  }

  const run = () => { restart(); go(); };

  // While λ is not annealed the points go on from where they are, and the reader's hand does the annealing.
  function keepOn() {
    if (anneal) return run();
    left = STEPS;
    field = smoothed(components, levelAt(step));
    go();
  }

  function paint(now) {
    if (playing && now - last > 14) {
      last = now;
      advance();
      tell();
    }
    const { pen, colours, pixel } = view, colour = colours.modes[METHODS[method].colour];
    density(view, field.lambda);
    Object.assign(pen, { strokeStyle: colour, lineWidth: 1, globalAlpha: 0.3, lineJoin: "round" });
    for (const path of points) pen.stroke(polyline(path.map(pixel)));
    pen.globalAlpha = 1;
    for (const path of points) disc(pen, pixel(path.at(-1)), 2.8, colour, `rgb(${colours.ground})`, 0.8);
    ruler(view, field, METHODS[method].level.at(-1));
    kernel(view, field);
    if (playing) view.refresh();
  }

  function press(point) {
    if (left <= 0) [step, left] = [0, STEPS];
    field = smoothed(components, levelAt(step));
    points.push([point]);
    go();
  }

  root.querySelector("p").remove();
  const view = stage(root, { label, bounds, paint, press });
  const choices = element(root, "div", { class: "choices", role: "radiogroup", "aria-label": "method" });
  const name = "method-" + root.id + "-" + document.querySelectorAll("[data-explore] [role=radiogroup]").length;
  for (const key of Object.keys(METHODS)) {
    const box = element(choices, "label"), input = element(box, "input", { type: "radio", name, ...OWN_KEYS });
    box.append(key);
    input.checked = key === method;
    input.onchange = () => {
      method = key;
      levels.querySelector("span").firstChild.textContent = METHODS[method].level;
      run();
    };
  }
  const box = element(choices, "label"), tick = element(box, "input", { type: "checkbox", ...OWN_KEYS });
  box.append("anneal it to 1 %");
  tick.checked = anneal;
  tick.onchange = () => { anneal = tick.checked; run(); };
  const sliders = element(root, "div", { class: "sliders" });
  const levels = logSlider(sliders, METHODS[method].level, bandwidth, [-60, 40], (value) => {
    level = value;
    keepOn();
  }).parentElement;
  slider(sliders, { label: "step size η", min: 0.05, max: 1, step: 0.05, value: eta, say: (v) => v.toFixed(2) }, (v) => {
    eta = v;
    keepOn();
  });
  const row = element(root, "div", { class: "keys" });
  const play = button(row, "Play", () => {
    if (playing) playing = false;
    else if (left > 0) go();
    else run();
    tell();
    view.refresh();
  });
  button(row, "Step", () => { playing = false; if (left <= 0) restart(); advance(); tell(); view.refresh(); });
  button(row, "Restart", () => { playing = false; restart(); tell(); view.refresh(); });
  const counter = element(row, "span", { class: "counter" }), status = element(root, "p", { role: "status" });
  element(root, "p", { class: "hint" }, "Press in the picture to add a point. The circle at the pointer has the radius σ or λ; "
    + "its arrow ends at D. With annealing off, the slider can be dragged while the points move.");
  restart();
  while (left > 0) advance();
  tell();
  const ends = () => points.map((path) => path.at(-1));
  root.explore = { smoothed: (lambda) => smoothed(components, lambda), randomness, points: ends };
}
