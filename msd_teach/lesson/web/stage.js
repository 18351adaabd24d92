const LIGHT = {
  ground: [255, 255, 255], peak: [142, 164, 188], ink: "#27313d",
  modes: ["#0067a6", "#c94f00", "#00805c", "#a8327f", "#7a5c00", "#5b46b8", "#00869e", "#a11d33"],
};
const DARK = {
  ground: [20, 24, 30], peak: [88, 108, 136], ink: "#e6ebf2",
  modes: ["#6cb8f0", "#ff9b57", "#4fd1a8", "#f08bc8", "#e8c65a", "#b3a4ff", "#5fd8e6", "#ff8a8a"],
};

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// A canvas on the plane. `paint(now)` draws one frame; `press(point, held)` may return a function that follows a drag,
// where `held` is what `grab(point)` found there. A finger that scrolls the page ends in pointercancel: it presses only
// when it grabs something, or when it taps.
function stage(root, { label, bounds: [left, right, bottom, top], paint, press, grab = () => undefined }) {
  const centre = [(left + right) / 2, (bottom + top) / 2];
  const canvas = element(root, "canvas", { tabindex: 0, role: "application", "aria-label": label, ...OWN_KEYS });
  const view = { canvas, pen: canvas.getContext("2d"), cursor: null, width: 0, height: 0 };
  let frame = 0, follow = null;

  view.refresh = () => {
    frame ||= requestAnimationFrame((now) => {
      frame = 0;
      if (canvas.clientWidth) { fit(); paint(now); }
    });
  };
  view.pixel = ([x, y]) => [view.width / 2 + (x - centre[0]) * view.scale, view.height / 2 - (y - centre[1]) * view.scale];
  view.point = (px, py) => [centre[0] + (px - view.width / 2) / view.scale, centre[1] - (py - view.height / 2) / view.scale];
  const under = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    return view.point(clientX - box.left - canvas.clientLeft, clientY - box.top - canvas.clientTop);
  };

  function fit() {
    const ratio = devicePixelRatio || 1;
    [view.width, view.height] = [canvas.clientWidth, canvas.clientHeight];
    view.scale = Math.min(view.width / (right - left), view.height / (top - bottom));
    const size = [view.width, view.height].map((side) => Math.round(side * ratio));
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    view.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const dark = isDark(root);
    root.toggleAttribute("data-dark", dark);
    view.colours = dark ? DARK : LIGHT;
  }

  canvas.onpointerdown = (event) => {
    if (event.button) return;
    const point = under(event), held = grab(point);
    if (held || event.pointerType !== "touch") follow = press(point, held);
    if (follow) canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    view.cursor = under(event);
    if (follow) follow(view.cursor);
    view.refresh();
  };
  canvas.onpointerup = (event) => {
    if (event.pointerType === "touch" && !follow) press(under(event));
    follow = null;
  };
  canvas.onpointercancel = () => { follow = null; };
  canvas.onpointerleave = canvas.onblur = () => { view.cursor = null; view.refresh(); };
  const keepFromScrolling = (event) => { if (grab(under(event.touches[0]))) event.preventDefault(); };
  canvas.addEventListener("touchstart", keepFromScrolling, { passive: false });
  canvas.onkeydown = (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!move && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    view.cursor ||= centre;
    const stride = (event.shiftKey ? 2 : 16) / view.scale;
    if (move) view.cursor = view.cursor.map((v, i) => v + stride * move[i]);
    else press(view.cursor);
    view.refresh();
  };

  new ResizeObserver(view.refresh).observe(canvas);
  watchTheme(view.refresh);
  view.refresh();
  return view;
}

// p_λ as tone and contour lines, kept until λ, the size or the theme changes; what is finer than the lattice is blurred.
function backdrop(components) {
  const variances = components.map(([, , , xx, xy, yy]) => (xx + yy) / 2 - Math.hypot((xx - yy) / 2, xy));
  const finest = Math.min(...variances);
  let image, lines, key;
  return (view, lambda) => {
    const { pen, width, height, scale, colours } = view;
    const now = [lambda, width, height, colours.ink].join();
    if (now !== key) {
      key = now;
      const wanted = Math.ceil(4 * width / scale / Math.sqrt(finest + lambda ** 2));
      const cells = Math.min(180, Math.max(56, wanted)), side = width / cells, cell = side / scale;
      const n = cells + 1, m = Math.ceil(height / side) + 1, [x0, y0] = view.point(0, (m - 1) * side);
      const p = smoothed(components, Math.hypot(lambda, cell / 2)).lattice({ x0, y0, cell, n, m });
      const ranked = p.slice().sort();
      const top = Math.max(ranked[Math.floor(0.996 * n * m)], ranked.at(-1) / 20, 1e-300);
      image = tone(p, n, m, top, colours);
      lines = contours(p, n, m, top, side);
    }
    pen.imageSmoothingQuality = "high";
    const side = width / (image.width - 1);
    pen.drawImage(image, -side / 2, -side / 2, side * image.width, side * image.height);
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 0.6;
    pen.globalAlpha = 0.32;
    pen.stroke(lines);
    pen.globalAlpha = 1;
  };
}

function tone(p, n, m, top, { ground, peak }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [n, m];
  const pen = canvas.getContext("2d"), image = pen.createImageData(n, m);
  for (let j = 0; j < m; j++) {
    for (let i = 0; i < n; i++) {
      const t = Math.sqrt(Math.min(1, p[(m - 1 - j) * n + i] / top)), q = 4 * (j * n + i);
      for (let c = 0; c < 3; c++) image.data[q + c] = ground[c] + t * (peak[c] - ground[c]);
      image.data[q + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

// Marching squares at fixed shares of `top`; row 0 of the lattice is the bottom of the picture.
function contours(p, n, m, top, side) {
  const path = new Path2D();
  for (const share of [0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]) {
    const level = share * top;
    for (let j = 0; j < m - 1; j++) {
      for (let i = 0; i < n - 1; i++) {
        const q = j * n + i, over = (k) => p[q + k] > level, above = over(0) + over(1) + over(n) + over(n + 1);
        if (above % 4 === 0) continue;
        const ring = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]], cut = [];
        for (let e = 0; e < 4; e++) {
          const a = ring[e], b = ring[(e + 1) % 4];
          const u = p[a[1] * n + a[0]] - level, v = p[b[1] * n + b[0]] - level, t = u / (u - v);
          if (u > 0 !== v > 0) cut.push([a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]);
        }
        cut.forEach(([x, y], e) => path[e % 2 ? "lineTo" : "moveTo"](x * side, (m - 1 - y) * side));
      }
    }
  }
  return path;
}
