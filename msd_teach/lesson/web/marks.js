// Marks on a canvas, in pixels.
function polyline(points) {
  const line = new Path2D();
  points.forEach(([x, y], i) => line[i ? "lineTo" : "moveTo"](x, y));
  return line;
}

// A path with a casing, a bead at each step that is far enough from the last bead, a ring where it began.
function trail(pen, path, colour, ground, whole) {
  const line = polyline(path);
  for (const [style, width, alpha] of [[ground, 4, 0.55], [colour, 1.6, 0.9]]) {
    Object.assign(pen, { strokeStyle: style, lineWidth: width, globalAlpha: alpha });
    pen.stroke(line);
  }
  pen.globalAlpha = 1;
  let bead = path[0];
  for (const point of path.slice(1, whole + 1)) {
    if (Math.hypot(point[0] - bead[0], point[1] - bead[1]) < 6) continue;
    disc(pen, bead = point, 2.2, colour);
  }
  disc(pen, path[0], 4, ground, colour);
  disc(pen, path.at(-1), 4, colour, ground);
}

function disc(pen, [x, y], radius, fill, stroke, lineWidth = 1.6) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = fill;
  pen.fill();
  if (stroke) { Object.assign(pen, { strokeStyle: stroke, lineWidth }); pen.stroke(); }
}

// A found mode is a bold ring around a dot; a saddle or a minimum is a square around it.
function mark(pen, [x, y], colour, ground, mode) {
  const shape = new Path2D();
  if (mode) shape.arc(x, y, 9, 0, 2 * Math.PI);
  else shape.rect(x - 8, y - 8, 16, 16);
  Object.assign(pen, { fillStyle: ground, strokeStyle: ground, lineWidth: 6 });
  pen.fill(shape);
  pen.stroke(shape);
  Object.assign(pen, { strokeStyle: colour, lineWidth: 2.5 });
  pen.stroke(shape);
  disc(pen, [x, y], 4.5, colour);
}

// A bar of length λ (or σ) in the corner.
function ruler({ pen, height, scale, colours: { ink } }, { lambda }, symbol = "λ") {
  const y = height - 16, length = lambda * scale;
  Object.assign(pen, { strokeStyle: ink, fillStyle: ink, lineWidth: 1.5, font: "italic 15px Georgia, serif" });
  pen.stroke(new Path2D(`M14 ${y - 4}v8m0-4h${length}m0-4v8`));
  pen.fillText(symbol, 22 + length, y + 4);
}

// The kernel at the pointer, and the mean-shift vector from its centre to the denoised point.
function kernel({ pen, cursor, pixel, scale, colours: { ink } }, field) {
  if (!cursor) return;
  const [x, y] = pixel(cursor), shift = field.shift(...cursor), [tx, ty] = pixel(cursor.map((v, i) => v + shift[i]));
  Object.assign(pen, { strokeStyle: ink, fillStyle: ink, lineWidth: 1.2 });
  pen.setLineDash([4, 4]);
  pen.beginPath();
  pen.arc(x, y, field.lambda * scale, 0, 2 * Math.PI);
  pen.stroke();
  pen.setLineDash([]);
  const length = Math.hypot(tx - x, ty - y), ux = (tx - x) / length, uy = (ty - y) / length;
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(tx, ty);
  if (length > 5) {
    pen.moveTo(tx - 7 * ux - 4 * uy, ty - 7 * uy + 4 * ux);
    pen.lineTo(tx, ty);
    pen.lineTo(tx - 7 * ux + 4 * uy, ty - 7 * uy - 4 * ux);
  }
  pen.lineWidth = 1.8;
  pen.stroke();
}
