// p_λ = Σ_k w_k N(μ_k, Σ_k + λ²I) in the plane. A component is [w, μ_x, μ_y, Σ_xx, Σ_xy, Σ_yy].
function smoothed(components, lambda) {
  const K = components.length, rows = new Float64Array(6 * K), energy = new Float64Array(K);
  const total = components.reduce((sum, c) => sum + c[0], 0);
  components.forEach(([w, x, y, xx, xy, yy], k) => {
    const a = xx + lambda ** 2, c = yy + lambda ** 2, det = a * c - xy * xy;
    rows.set([x, y, c / det, -xy / det, a / det, Math.log(w / total / (2 * Math.PI * Math.sqrt(det)))], 6 * k);
  });

  // The mean-shift vector m(x) = D(x; λ) − x = λ² ∇log p_λ(x), and log p_λ(x). Component k pulls with a weight
  // proportional to w_k N(x; μ_k, Σ_k + λ²I).
  function shift(x, y) {
    let top = -Infinity;
    for (let k = 0, i = 0; k < K; k++, i += 6) {
      const dx = x - rows[i], dy = y - rows[i + 1];
      energy[k] = rows[i + 5] - (rows[i + 2] * dx * dx + 2 * rows[i + 3] * dx * dy + rows[i + 4] * dy * dy) / 2;
      if (energy[k] > top) top = energy[k];
    }
    let sum = 0, sx = 0, sy = 0;
    for (let k = 0, i = 0; k < K; k++, i += 6) {
      if (energy[k] < top - 40) continue;  // below the rounding of the sum
      const r = Math.exp(energy[k] - top), dx = x - rows[i], dy = y - rows[i + 1];
      sum += r;
      sx -= r * (rows[i + 2] * dx + rows[i + 3] * dy);
      sy -= r * (rows[i + 3] * dx + rows[i + 4] * dy);
    }
    const step = lambda ** 2 / sum;
    return [step * sx, step * sy, top + Math.log(sum)];
  }

  // A draw from the product q_λ(·|x) ∝ p N(x, λ²I): a component by its pull, then N(x − λ²Pd, λ²(I − λ²P)), where
  // P = (Σ_k + λ²I)⁻¹ and d = x − μ_k.
  function draw(x, y, { uniform, normal }) {
    const [, , logp] = shift(x, y), v = lambda ** 2;
    let u = uniform(), k = -1;
    do u -= Math.exp(energy[++k] - logp); while (u > 0 && k < K - 1);
    const [mx, my, a, b, c] = rows.subarray(6 * k, 6 * k + 5), dx = x - mx, dy = y - my, n = normal();
    const l = Math.sqrt(v * (1 - v * a)), q = -v * v * b / l, r = Math.sqrt(Math.max(0, v * (1 - v * c) - q * q));
    return [x - v * (a * dx + b * dy) + l * n, y - v * (b * dx + c * dy) + q * n + r * normal()];
  }

  // p_λ on an n × m lattice. Along a row a Gaussian needs no exp: the ratio of neighbours falls by a constant factor.
  function lattice({ x0, y0, cell, n, m }) {
    const p = new Float64Array(n * m), reach = 5.5;
    for (let k = 0, i = 0; k < K; k++, i += 6) {
      const [mx, my, a, b, c, logw] = rows.subarray(i, i + 6);
      const height = reach * Math.sqrt(a / (a * c - b * b)), width = reach / Math.sqrt(a);
      const fall = Math.exp(-a * cell * cell);
      const top = Math.min(m - 1, Math.floor((my + height - y0) / cell));
      for (let j = Math.max(0, Math.ceil((my - height - y0) / cell)); j <= top; j++) {
        const dy = y0 + j * cell - my, peak = mx - b * dy / a;
        const left = Math.max(0, Math.ceil((peak - width - x0) / cell));
        const right = Math.min(n - 1, Math.floor((peak + width - x0) / cell));
        const start = Math.min(right, Math.max(left, Math.round((peak - x0) / cell)));
        const d = x0 + start * cell - peak;
        const value = Math.exp(logw - (a * d * d + (c - b * b / a) * dy * dy) / 2);
        for (let s = 1, q = start; s >= -1; s -= 2, q = start - 1) {
          let v = value, ratio = Math.exp(-a * cell * (cell / 2 + s * d));
          if (s < 0) { v *= ratio; ratio *= fall; }
          for (; q >= left && q <= right; q += s, v *= ratio, ratio *= fall) p[j * n + q] += v;
        }
      }
    }
    return p;
  }

  return { lambda, shift, draw, lattice };
}

// Mean shift x ← x + η m(x) until the rest of the way, |m| / (1 − contraction), is below `tolerance`.
function climb(field, [x, y], eta, tolerance, limit = 500) {
  const path = [[x, y]];
  let before = Infinity, rest = false;
  while (!rest && path.length <= limit) {
    const [mx, my] = field.shift(x, y), length = eta * Math.hypot(mx, my);
    x += eta * mx;
    y += eta * my;
    path.push([x, y]);
    rest = length < tolerance * Math.max(1e-3, 1 - length / before);
    before = length;
  }
  return { path, rest };
}

// At a stationary point: is it a maximum of p_λ (the Jacobian of m is negative definite), or a saddle or a minimum?
function isMode(field, [x, y]) {
  const h = field.lambda * 1e-3;
  const e = field.shift(x + h, y), w = field.shift(x - h, y), n = field.shift(x, y + h), s = field.shift(x, y - h);
  return e[0] < w[0] && (e[0] - w[0]) * (n[1] - s[1]) > (e[1] - w[1]) * (n[0] - s[0]);
}
