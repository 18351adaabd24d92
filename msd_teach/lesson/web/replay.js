// Recorded runs, two side by side. `packed` holds deflated bytes, made by msd_teach/replay.py.
async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Positions, from 0 to `grid`, from their changes frame by frame: all low bytes, then all high ones, in zigzag code.
function positions(bytes, count, stride) {
  const q = new Int16Array(count);
  for (let i = 0; i < count; i++) {
    const code = bytes[i] | bytes[count + i] << 8;
    q[i] = (i < stride ? 0 : q[i - stride]) + ((code >> 1) ^ -(code & 1));
  }
  return q;
}

// √p on a lattice as tone and contour lines, like `backdrop`, which knows the components. The lines are a little wider
// than a pixel: thinner ones are drawn segment by segment, with dots where two segments meet.
function printed([corner, cell, [m, n]], roots, tones) {
  const p = Float64Array.from(roots, (v) => (v / tones) ** 2);
  let image, lines, key;
  return ({ pen, scale, colours, pixel }) => {
    const side = cell * scale, now = [side, colours.ink].join();
    if (now !== key) {
      key = now;
      image = tone(p, n, m, 1, colours);
      lines = contours(p, n, m, 1, side);
    }
    const [x, y] = pixel([corner[0], corner[1] + (m - 1) * cell]);
    pen.save();
    pen.translate(x, y);
    Object.assign(pen, { imageSmoothingQuality: "high", strokeStyle: colours.ink, lineWidth: 1.05 });
    pen.drawImage(image, -side / 2, -side / 2, side * n, side * m);
    pen.globalAlpha = 0.22;
    pen.stroke(lines);
    pen.restore();
  };
}

const TAILS = 3, PACE = 6;  // frames that a tail goes back, frames played in a second

async function replay(root, { densities, methods, losses, steps, points, bounds, grid, tones, chosen, packed, label }) {
  const bytes = await inflate(packed), [left, right, bottom, top] = bounds, last = steps.length - 1;
  const stride = 2 * points * methods.length * densities.length, count = stride * steps.length;
  const q = positions(bytes, count, stride);
  let offset = 2 * count;
  for (const d of densities) {
    const [m, n] = d.ground[2];
    d.paint = printed(d.ground, bytes.subarray(offset, offset += m * n), tones);
  }
  // `at` is the frame shown; between two frames, while playing, points glide. `followed` is a point's index.
  let [density, ...pair] = chosen, at = last, playing = false, before = 0, followed = -1;

  const recorded = (frame, method, i) => {
    const k = frame * stride + (density * methods.length + method) * 2 * points + i;
    return [left + q[k] / grid * (right - left), bottom + q[k + points] / grid * (top - bottom)];
  };
  function place(time, method, i) {
    const frame = Math.floor(time), share = time - frame, [x, y] = recorded(frame, method, i);
    if (!share) return [x, y];
    const [u, v] = recorded(frame + 1, method, i);
    return [x + share * (u - x), y + share * (v - y)];
  }
  // The places of a point from the time `from` until now.
  function path(method, i, from) {
    const places = [];
    for (let frame = Math.max(0, Math.ceil(from)); frame < at; frame++) places.push(recorded(frame, method, i));
    return [...places, place(at, method, i)];
  }

  function tell() {
    const frame = Math.floor(at), { name, entropy } = densities[density];
    const nats = (value) => value.toFixed(2).replace("-", "−") + " nats";
    panels.forEach(({ caption, note, view }, side) => {
      const method = methods[pair[side]];
      caption.setAttribute("aria-live", playing ? "off" : "polite");
      caption.textContent = "mean −log p = " + nats(losses[density][pair[side]][frame]);
      note.textContent = method.levels[frame] || "";
      view.canvas.setAttribute("aria-label", `${points} points at step ${steps[frame]} of ${method.name} on ${name}`);
    });
    truth.textContent = `samples of ${name}: ${nats(entropy)}`;
    play.textContent = playing ? "Pause" : "Play";
    release.style.visibility = followed < 0 ? "hidden" : "visible";
    if (+time.value !== frame) { time.value = frame; time.oninput(); }
  }
  const refresh = () => { tell(); for (const { view } of panels) view.refresh(); };

  function advance(now) {
    at = Math.min(last, at + PACE * Math.min(0.1, Math.max(0, now - before) / 1000));
    before = now;
    if (at === last) playing = false;
    refresh();
  }

  // A close-up shows the density and the last frame; runs may begin outside of it.
  function aim(view) {
    const [l, r, b, t] = close.checked ? densities[density].box : bounds;
    view.centre = [(l + r) / 2, (b + t) / 2];
    view.scale = Math.min(view.width / (r - l), view.height / (t - b));
  }

  function paint(side, now) {
    if (playing && side === 0) advance(now);
    const { view, swatch } = panels[side], { pen, colours, pixel, width, height, cursor } = view, method = pair[side];
    const colour = swatch.style.background = colours.modes[method % 8], ground = `rgb(${colours.ground})`;
    aim(view);
    pen.fillStyle = ground;
    pen.fillRect(0, 0, width, height);
    densities[density].paint(view);
    Object.assign(pen, { strokeStyle: colour, lineWidth: 1.2, lineCap: "round" });
    const dots = Array.from({ length: points }, (_, i) => path(method, i, at - TAILS).map(pixel));
    for (const dot of dots) {
      dot.slice(1).forEach((to, k) => {
        pen.globalAlpha = 0.1 + 0.25 * (k + 1) / dot.length;
        pen.stroke(polyline([dot[k], to]));
      });
    }
    pen.globalAlpha = 1;
    for (const dot of dots) disc(pen, dot.at(-1), 2.8, colour, ground, 0.8);
    if (followed >= 0) trail(pen, path(method, followed, 0).map(pixel), colours.ink, ground, last);
    if (cursor) disc(pen, pixel(place(at, method, nearest(side, cursor))), 7, "transparent", colours.ink, 1.5);
  }

  const away = ([x, y], [u, v]) => Math.hypot(x - u, y - v);
  function nearest(side, point) {
    const gaps = Array.from({ length: points }, (_, i) => away(place(at, pair[side], i), point));
    return gaps.indexOf(Math.min(...gaps));
  }

  // A press follows the nearest point in both pictures, a second one lets it go; a drag changes the point.
  function press(side, point) {
    const found = nearest(side, point), again = found === followed;
    followed = again ? -1 : found;
    refresh();
    return again ? null : (to) => { followed = nearest(side, to); refresh(); };
  }

  root.querySelector("p").remove();
  root.setAttribute("aria-label", label);
  const name = "density-" + root.id + "-" + document.querySelectorAll("[data-explore] [role=radiogroup]").length;
  const choices = element(root, "div", { class: "choices", role: "radiogroup", "aria-label": "density" });
  densities.forEach((d, k) => {
    const box = element(choices, "label"), input = element(box, "input", { type: "radio", name, ...OWN_KEYS });
    box.append(d.name);
    input.checked = k === density;
    input.onchange = () => { density = k; refresh(); };
  });
  const box = element(choices, "label"), close = element(box, "input", { type: "checkbox", ...OWN_KEYS });
  box.append("close up");
  close.checked = true;
  close.onchange = refresh;
  const truth = element(choices, "span", { class: "counter" });
  const both = element(root, "div", { class: "panels" });
  const panels = ["left", "right"].map((which, side) => {
    const panel = element(both, "div"), head = element(panel, "div", { class: "head" });
    const swatch = element(head, "i"), note = element(head, "span", { class: "counter" });
    const select = element(head, "select", { "aria-label": `${which} method`, ...OWN_KEYS });
    note.before(select);
    methods.forEach((method, k) => { element(select, "option", { value: k }, method.name).selected = k === pair[side]; });
    select.onchange = () => { pair[side] = +select.value; refresh(); };
    const view = stage(root, { label, bounds, paint: (now) => paint(side, now), press: (point) => press(side, point) });
    panel.append(view.canvas);
    view.pixel = ([x, y]) => [view.width / 2 + (x - view.centre[0]) * view.scale, view.height / 2 - (y - view.centre[1]) * view.scale];
    view.point = (px, py) => [view.centre[0] + (px - view.width / 2) / view.scale, view.centre[1] - (py - view.height / 2) / view.scale];
    aim(view);
    return { view, swatch, note, caption: element(panel, "p", { role: "status" }) };
  });
  const sliders = element(root, "div", { class: "sliders" });
  const time = slider(sliders, { label: "step", min: 0, max: last, value: at, say: (k) => `${steps[k]} of ${steps[last]}` }, (k) => {
    if (k === Math.floor(at)) return;
    [at, playing] = [k, false];
    refresh();
  });
  const row = element(root, "div", { class: "keys" });
  const play = button(row, "Play", () => {
    if (playing) at = Math.round(at);
    else if (at === last) at = 0;
    else if (calm()) at = last;
    playing = !playing && !calm();
    before = performance.now();
    refresh();
  });
  const release = button(row, "Let the point go", () => { followed = -1; refresh(); });
  element(root, "p", { class: "hint" }, "Press near a point to follow it in both pictures; press it again to let it go. "
    + `Tails are ${TAILS} frames long. While it plays, points go straight from one recorded frame to the next; `
    + "without the close-up, all of their way is in the picture.");
  tell();
  root.explore = {
    points: (side) => Array.from({ length: points }, (_, i) => place(at, pair[side], i)),
    pixels: (side) => Array.from({ length: points }, (_, i) => panels[side].view.pixel(place(at, pair[side], i))),
    followed: () => followed,
  };
}
