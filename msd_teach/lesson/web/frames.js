// Precomputed frames behind range inputs, one for each combination; the last slider runs fastest.
function frames(root, { sliders, frames, alt }) {
  root.querySelector("p").remove();
  const picture = element(root, "img", { alt }), box = element(root, "div", { class: "sliders" });
  const chosen = sliders.map(({ start }) => start);
  const show = () => {
    root.toggleAttribute("data-dark", isDark(root));
    picture.src = "data:image/webp;base64," + frames[chosen.reduce((index, i, k) => index * sliders[k].values.length + i, 0)];
  };
  sliders.forEach(({ name, values, start }, k) => {
    slider(box, { label: name, min: 0, max: values.length - 1, value: start, say: (i) => values[i] }, (i) => {
      chosen[k] = i;
      show();
    });
  });
  watchTheme(show);
  show();
}
