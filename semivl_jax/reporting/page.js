"use strict";
(() => {
  const $ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const legends = read("legends");

  // Theme: that of the system, or the chosen one. Browsers may forbid storage for local files.
  const button = document.getElementById("theme");
  const themes = ["", "light", "dark"], labels = ["as the system", "light", "dark"];
  let theme = "";
  try { theme = localStorage.getItem("semivl-theme") || ""; } catch { /* keep the system's */ }
  const show = () => {
    if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
    button.setAttribute("aria-label", "Colours: " + labels[themes.indexOf(theme)]);
    button.title = button.getAttribute("aria-label");
  };
  show();
  button.onclick = () => {
    theme = themes[(themes.indexOf(theme) + 1) % 3];
    try { localStorage.setItem("semivl-theme", theme); } catch { /* not stored */ }
    show(); recolour();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour());

  // Sorting: numbers by value, names alphabetically, empty cells last.
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    return text === "–" ? null : column ? parseFloat(text) : text.toLowerCase();
  };
  for (const table of $("table:is(.sortable, .labels)")) {
    $("thead button", table).forEach((head, column) => head.onclick = () => {
      const cell = head.parentElement, body = table.tBodies[0];
      const down = cell.getAttribute("aria-sort") === "descending" ? false : column > 0 || cell.getAttribute("aria-sort") === "ascending";
      $("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // Pictures: the colour under the pointer gives the class; the position is marked in all pictures of a sample.
  const pixels = (image) => {
    if (!image.pixels) {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      image.pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    }
    return image.pixels;
  };
  const hex = (data, at) => "#" + [0, 1, 2].map((i) => data[at + i].toString(16).padStart(2, "0")).join("");
  const at = (image, x, y) => {
    const { width, height, data } = pixels(image);
    const place = 4 * (Math.min(height - 1, Math.floor(y * height)) * width + Math.min(width - 1, Math.floor(x * width)));
    return data[place + 3] ? hex(data, place) : null;
  };
  const level = (colour) => Math.round(20 * (parseInt(colour.slice(1, 3), 16) - 20) / 232) * 5;
  for (const sample of $(".sample")) {
    const names = new Map(legends[sample.dataset.run].map((c) => [c.colour, c.name]));
    const panels = $(".picture", sample), readout = sample.querySelector(".readout");
    let x = 0.5, y = 0.5;
    const mark = () => {
      readout.replaceChildren();
      for (const panel of panels) {
        const frame = panel.firstElementChild;
        const cross = frame.querySelector(".cross") || frame.appendChild(Object.assign(document.createElement("span"), { className: "cross" }));
        cross.style.left = 100 * x + "%"; cross.style.top = 100 * y + "%";
        const kind = panel.dataset.kind;
        if (kind === "image" || kind === "error") continue;
        const colour = at(frame.firstElementChild, x, y);
        const text = kind === "confidence" ? level(colour) + " %" : colour === null ? "none" : names.get(colour) || "?";
        const bold = Object.assign(document.createElement("b"), { textContent: text });
        readout.append(readout.childNodes.length ? " · " : "", panel.querySelector("figcaption").textContent + ": ", bold);
      }
    };
    const unmark = () => { $(".cross", sample).forEach((cross) => cross.remove()); readout.textContent = " "; };
    for (const panel of panels) {
      const frame = panel.firstElementChild;
      frame.addEventListener("pointermove", (event) => {
        const box = frame.getBoundingClientRect();
        x = Math.min(0.999, Math.max(0, (event.clientX - box.left) / box.width));
        y = Math.min(0.999, Math.max(0, (event.clientY - box.top) / box.height));
        mark();
      });
      frame.addEventListener("pointerleave", unmark);
      panel.addEventListener("blur", unmark);
      panel.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!move) return;
        event.preventDefault();
        x = Math.min(0.999, Math.max(0, x + 0.03 * move[0])); y = Math.min(0.999, Math.max(0, y + 0.03 * move[1]));
        mark();
      });
    }
  }
  // Pressing a class in the legend dims all others.
  for (const legend of $(".legend")) {
    const buttons = $("button", legend);
    for (const entry of buttons) entry.onclick = () => {
      const on = entry.getAttribute("aria-pressed") !== "true";
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(on && other === entry)));
      const colour = on ? legends[legend.dataset.legend][entry.dataset.class].colour : null;
      $(`.sample[data-run="${legend.dataset.legend}"] .picture`).forEach((panel) => dim(panel, colour));
    };
  }
  const dim = (panel, colour) => {
    const frame = panel.firstElementChild, image = frame.firstElementChild;
    frame.querySelector("canvas")?.remove();
    if (!colour || ["image", "error", "confidence"].includes(panel.dataset.kind)) return;
    const { width, height, data } = pixels(image);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const shade = new ImageData(width, height);
    for (let i = 0; i < data.length; i += 4) if (!data[i + 3] || hex(data, i) !== colour) shade.data[i + 3] = 190;
    canvas.getContext("2d").putImageData(shade, 0, 0);
    frame.append(canvas);
  };

  const recolour = drawCharts(read("figures"));
})();
