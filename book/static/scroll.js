// A formula or table that scrolls sideways is a tab stop, so that keys can scroll it; one that fits is none.
addEventListener("load", () => {
  const seen = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const node of document.querySelectorAll("div.math, .bd-article table")) seen.observe(node);
});
