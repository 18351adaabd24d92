// Chapter 01's canvas: climbers go from where they were dropped to a stationary point of p_λ, and λ can be dragged.
function meanShift(root, { components, bounds, bandwidth, starts, label }) {
  const [left, right, bottom, top] = bounds, span = Math.hypot(right - left, top - bottom);
  const density = backdrop(components);
  let field = smoothed(components, bandwidth), eta = 1, climbers = [], ends = [], playing = false, last = 0;

  // `age` is the number of steps shown; a climber has arrived when it shows its whole path.
  const length = (c) => c.path.length - 1, arrived = (c) => c.age >= length(c);
  const start = (point, age) => ({ age, ...climb(field, point, eta, 1e-5 * span) });

  function reclimb() {
    climbers = climbers.map((c) => start(c.path[0], arrived(c) ? Infinity : c.age));
    settle();
  }

  // Climbers that end at one place share a stationary point; it keeps the colour that its place had a moment ago.
  function settle() {
    const before = ends, found = [];
    for (const c of climbers) {
      const end = c.path[length(c)];
      c.end = c.rest && found.find(({ at }) => Math.hypot(at[0] - end[0], at[1] - end[1]) < 2e-3 * span);
      if (c.rest && !c.end) found.push(c.end = { at: end, mode: isMode(field, end), colour: -1 });
    }
    for (const f of found) {
      const away = (b) => Math.hypot(b.at[0] - f.at[0], b.at[1] - f.at[1]);
      const near = before.filter((b) => away(b) < 0.25 * span && !found.some((g) => g.colour === b.colour));
      if (near.length) f.colour = near.reduce((a, b) => (away(a) < away(b) ? a : b)).colour;
    }
    for (const f of found) while (f.colour < 0 || found.some((g) => g !== f && g.colour === f.colour)) f.colour++;
    ends = found;
    tell();
    view.refresh();
  }

  function drop(points, age) {
    climbers = [...climbers, ...points.map((p) => start(p, age))].slice(-250);
    settle();
  }

  const reached = () => ends.filter((f) => climbers.some((c) => c.end === f && arrived(c)));
  const many = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  function tell() {
    const n = climbers.length, home = climbers.filter(arrived), rest = home.filter((c) => c.rest).length;
    const modes = reached().filter((f) => f.mode).length, others = reached().length - modes;
    const parts = [`${many(modes, "mode")} found`];
    if (others) parts.push(many(others, "other stationary point"));
    parts.push(rest < n ? `${rest} of ${many(n, "climber")} at rest` : `${many(n, "climber")} at rest`);
    if (rest < home.length) parts.push(`${home.length - rest} not there after 500 steps`);
    const text = n ? parts.join(" · ") : "No climbers. Press in the picture to drop one.";
    if (status.textContent !== text) status.textContent = text;
    const longest = Math.max(0, ...climbers.map(length));
    const shown = Math.max(0, ...climbers.map((c) => Math.min(Math.floor(c.age), length(c))));
    counter.textContent = n ? `step ${shown} of ${longest}` : "";
    play.textContent = playing ? "Pause" : "Play";
  }

  function advance(now) {
    const speed = Math.max(9, Math.max(...climbers.map(length)) / 5), dt = Math.min(0.05, Math.max(0, now - last) / 1000);
    last = now;
    for (const c of climbers) if (!arrived(c)) c.age += speed * dt;
    playing = !climbers.every(arrived);
    tell();
    if (playing) view.refresh();
  }

  function run() {
    playing = true;
    last = performance.now();
    if (calm()) for (const c of climbers) c.age = Infinity;
    view.refresh();
  }

  const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) * view.scale;
  const grab = (point) => climbers.findLast((c) => apart(c.path[0], point) < 14);
  function press(point, held) {
    if (!held) {
      drop([point], 0);
      held = climbers.at(-1);
      run();
    }
    return (to) => {
      if (held.age !== Infinity && apart(point, to) < 4) return;
      Object.assign(held, start(to, Infinity));
      settle();
    };
  }

  function paint(now) {
    if (playing) advance(now);
    const { pen, colours, pixel } = view, ground = `rgb(${colours.ground})`;
    density(view, field.lambda);
    const hue = (end) => colours.modes[end.colour % colours.modes.length];
    pen.lineJoin = pen.lineCap = "round";
    for (const c of climbers) {
      const whole = Math.min(length(c), Math.floor(c.age)), part = Math.min(1, c.age - whole) || 0;
      const shown = c.path.slice(0, whole + 1).map(pixel);
      if (!arrived(c) && part) {
        const [a, b] = [shown[whole], pixel(c.path[whole + 1])];
        shown.push([a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])]);
      }
      trail(pen, shown, arrived(c) && c.end ? hue(c.end) : colours.ink, ground, whole);
    }
    for (const f of reached()) mark(pen, pixel(f.at), hue(f), ground, f.mode);
    ruler(view, field);
    kernel(view, field);
  }

  root.querySelector("p").remove();
  const view = stage(root, { label, bounds, paint, press, grab });
  const sliders = element(root, "div", { class: "sliders" });
  const extremes = [Math.min(bandwidth, 0.008 * span), Math.max(bandwidth, 0.4 * span)];
  const reach = extremes.map((v) => Math.round(40 * Math.log10(v / bandwidth)));
  logSlider(sliders, "bandwidth λ", bandwidth, reach, (lambda) => {
    field = smoothed(components, lambda);
    reclimb();
  });
  slider(sliders, { label: "step size η", min: 0.1, max: 1.9, step: 0.1, value: 1, say: (v) => v.toFixed(1) }, (v) => {
    eta = v;
    reclimb();
  });
  const row = element(root, "div", { class: "keys" });
  const play = button(row, "Play", () => {
    if (playing) playing = false;
    else {
      const again = climbers.every(arrived);
      if (again) for (const c of climbers) c.age = 0;
      if (!(again && calm())) run();
    }
    tell();
    view.refresh();
  });
  button(row, "Step", () => {
    playing = false;
    const again = climbers.every(arrived);
    for (const c of climbers) c.age = again ? 1 : Math.floor(Math.min(c.age, length(c))) + 1;
    tell();
    view.refresh();
  });
  button(row, "Add grid", () => {
    const grid = [];
    for (let y = 1; y < 12; y += 2) for (let x = 1; x < 16; x += 2) grid.push(view.point(x * view.width / 16, y * view.height / 12));
    drop(grid, 0);
    run();
  });
  button(row, "Clear", () => { climbers = []; playing = false; settle(); });
  const counter = element(row, "span", { class: "counter" });
  const status = element(root, "p", { role: "status" });
  element(root, "p", { class: "hint" }, "Press in the picture to drop a climber, drag its ring to move it. "
    + "The circle at the pointer has radius λ; its arrow ends at D(x; λ). With the keyboard: arrow keys and Enter.");
  drop(starts, Infinity);
  root.explore = { smoothed: (lambda) => smoothed(components, lambda), climbers: () => climbers, ends: () => ends };
}
