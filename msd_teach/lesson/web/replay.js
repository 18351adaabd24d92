// Recorded runs, two side by side at one step. `places` holds 16-bit shares of a picture's side, x and y in turn, by
// density, method, frame and point.
function replay(root, { densities, methods, steps, points, places, chosen: [density, ...pair], label }) {
  const q = new Uint16Array(Uint8Array.from(atob(places), (c) => c.charCodeAt(0)).buffer);
  const last = steps.length - 1, nats = (value) => value.toFixed(2).replace("-", "−") + " nats";
  let frame = last;
  const place = (method, i) => {
    const k = 2 * (((density * methods.length + method) * steps.length + frame) * points + i);
    return [q[k] / 65535, 1 - q[k + 1] / 65535];
  };

  function choice(parent, name, options, chosen, onchange) {
    const select = element(parent, "select", { "aria-label": name, ...OWN_KEYS });
    options.forEach((option, k) => { element(select, "option", { value: k }, option.name).selected = k === chosen; });
    select.onchange = () => { onchange(+select.value); show(); };
  }

  root.querySelector("p").remove();
  root.setAttribute("aria-label", label);
  const choices = element(root, "div", { class: "choices" });
  choice(choices, "density", densities, density, (k) => { density = k; });
  const truth = element(choices, "span", { class: "counter" }), both = element(root, "div", { class: "panels" });
  const panels = ["left", "right"].map((which, side) => {
    const panel = element(both, "div"), head = element(panel, "div", { class: "head" });
    choice(head, `${which} method`, methods, pair[side], (k) => { pair[side] = k; });
    const note = element(head, "span", { class: "counter" });
    const canvas = element(panel, "canvas", { width: 640, height: 640, role: "img" });
    return { note, canvas, pen: canvas.getContext("2d"), caption: element(panel, "p", { role: "status" }) };
  });
  const say = (k) => `${steps[k]} of ${steps[last]}`;
  slider(element(root, "div", { class: "sliders" }), { label: "step", min: 0, max: last, value: last, say }, (k) => {
    frame = k;
    show();
  });
  for (const d of densities) {
    d.image = new Image();
    d.image.onload = show;
    d.image.src = "data:image/png;base64," + d.ink;
  }

  function show() {
    const dark = root.toggleAttribute("data-dark", isDark(root)), { name, entropy, losses, image } = densities[density];
    truth.textContent = `samples of ${name}: ${nats(entropy)}`;
    panels.forEach(({ note, canvas, pen, caption }, side) => {
      const method = pair[side];
      note.textContent = methods[method].levels[frame];
      caption.textContent = "mean −log p = " + nats(losses[method][frame]);
      canvas.setAttribute("aria-label", `${points} points at step ${steps[frame]} of ${methods[method].name} on ${name}`);
      pen.clearRect(0, 0, 640, 640);
      if (image.complete) pen.drawImage(image, 0, 0, 640, 640);
      for (let i = 0; i < points; i++) {
        const [x, y] = place(method, i);
        disc(pen, [640 * x, 640 * y], 6, dark ? "#ff9b57" : "#c94f00", dark ? "#14181e" : "#fff");
      }
    });
  }
  watchTheme(show);
  show();
  root.explore = { points: (side) => Array.from({ length: points }, (_, i) => place(pair[side], i)) };
}
