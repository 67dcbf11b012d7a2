"use strict";
// Draws the figures of charts.py on canvases: lines and bars with uPlot, confusion matrices here.
// A tooltip shows the values under the pointer, or at the position chosen with the arrow keys.
const drawCharts = (figures) => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let ink, line, soft;
  const colours = () => { ink = css("--ink"); line = css("--line"); soft = css("--soft"); };
  colours();
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const short = (value) => {
    const round = Number(value.toPrecision(4)), size = Math.abs(round);
    return round === 0 || (size >= 1e-3 && size < 1e6) ? String(round) : round.toExponential().replace("e+", "e");
  };
  const widest = (names) => 6.4 * Math.max(1, ...names.map((name) => name.length));
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // The tooltip; a live region, so that screen readers read it.
  const tip = (place) => {
    const box = place.appendChild(element("div", { className: "tip", hidden: true, role: "status" }));
    return {
      hide: () => { box.hidden = true; },
      show: (left, top, title, rows) => {
        box.replaceChildren(element("b", { textContent: title }), ...rows.map(([colour, name, value]) => {
          const row = element("div", {}, element("i"), name ? name + ": " : "", element("b", { textContent: value }));
          if (colour) row.firstChild.style.background = colour; else row.firstChild.remove();
          return row;
        }));
        box.hidden = false;
        const right = left + 14 + box.offsetWidth > place.clientWidth;
        box.style.left = Math.max(0, right ? left - 14 - box.offsetWidth : left + 14) + "px";
        box.style.top = clamp(top, 0, Math.max(0, place.clientHeight - box.offsetHeight)) + "px";
      },
    };
  };

  // Lines and bars.
  const axes = (figure) => {
    const common = { stroke: () => ink, font: "12px system-ui, sans-serif", grid: { stroke: () => line, width: 1 },
      ticks: { stroke: () => line, width: 1 } };
    const y = { ...common, values: (_, at) => at.map((v) => v === null ? "" : short(v) + figure.unit),
      size: (_, values) => 18 + 7 * Math.max(1, ...(values || []).map((text) => text.length)) };
    if (figure.kind === "lines") return [{ ...common, space: 70, size: 34, values: (_, at) => at.map(short) }, y];
    const { names } = figure, room = (u) => u.width / names.length;
    const rotated = (u) => widest(names) > room(u) - 6, named = (u) => room(u) >= 13;
    const splits = (_, __, low, high) => names.map((_, i) => i).filter((i) => i >= low && i <= high);
    return [{ ...common, splits, grid: { show: false }, ticks: { show: false }, rotate: (u) => rotated(u) ? -90 : 0,
      values: (u, at) => at.map((i) => named(u) ? names[i] : ""),
      size: (u) => !named(u) ? 12 : rotated(u) ? Math.min(150, 14 + widest(names)) : 30 }, y];
  };
  // From a round number below the lowest value, where uPlot starts its ticks, to a little above the highest.
  const logRange = (_, low, high) => {
    if (!(low > 0)) return [0.1, 1];
    const unit = 10 ** Math.floor(Math.log10(low));
    return [Math.max(1, Math.floor(0.98 * low / unit)) * unit, 1.15 * high];
  };
  const linearRange = (most) => (_, low, high) => {
    if (low === null || (low === 0 && high === 0)) return [0, Math.min(most, 1)];
    const [from, to] = uPlot.rangeNum(low, high, 0.1, true);
    return [low < 0 ? from : Math.max(0, from), Math.min(most, to)];
  };
  // With nearly equal values a logarithmic axis would have no tick.
  const isLog = ({ kind, log, series }) => {
    const values = series.flatMap(({ y, low, high }) => [y, low || [], high || []].flat()).filter((v) => v > 0);
    return log && (kind === "bars" || Math.max(...values) > 4 * Math.min(...values));
  };
  const tables = ({ kind, series }) => series.map((s, number) => {
    if (kind === "lines") return s.low ? [s.x, s.y, s.low, s.high] : [s.x, s.y];
    const shift = 0.9 * ((number + 0.5) / series.length - 0.5);
    return [s.y.map((_, i) => i + shift), s.y];
  });
  const options = (figure, place) => {
    const series = [{}], bands = [], places = [];
    const bars = figure.kind === "bars";
    for (const { name, colour, low } of figure.series) {
      places.push(series.length);
      const paths = bars ? uPlot.paths.bars({ size: [0.9 / figure.series.length, 80] }) : undefined;
      series.push({ label: name, stroke: colour, width: bars ? 0 : 2, fill: bars ? colour : undefined, paths,
        points: { show: !bars && figure.points, size: 7, fill: colour } });
      if (!low) continue;
      for (let edge = 0; edge < 2; edge++) series.push({ stroke: "transparent", width: 0, points: { show: false } });
      bands.push({ series: [series.length - 1, series.length - 2], fill: colour + "24" });
    }
    const x = { time: false, range: bars ? [-0.5, figure.names.length - 0.5] : undefined };
    return { places, options: { width: place.clientWidth, height: place.clientHeight, series, bands, axes: axes(figure),
      scales: { x, y: isLog(figure) ? { distr: 3, range: logRange } : { range: linearRange(figure.unit ? 100 : Infinity) } }, legend: { show: false }, padding: [8, 26, 0, 0],
      cursor: { y: false, points: { show: !bars } } } };
  };
  const plot = (place, figure) => {
    const { places, options: made } = options(figure, place), tooltip = tip(place), { names, unit, series } = figure;
    let at = null;
    const show = (u) => {
      const { left, top, idx } = u.cursor;
      if (left < 0 || idx === null || idx === undefined) { at = null; return tooltip.hide(); }
      at = names ? clamp(Math.round(u.posToVal(left, "x")), 0, names.length - 1) : idx;
      const rows = series.flatMap(({ name, colour, y }, number) => {
        const value = names ? y[at] : u.data[places[number]][at];
        return value === undefined || !u.series[places[number]].show ? [] : [[colour, name, value === null ? "–" : short(value) + unit]];
      });
      tooltip.show(left + u.bbox.left / devicePixelRatio, top, names ? names[at] : "step " + u.data[0][at], rows);
    };
    const u = new uPlot({ ...made, hooks: { setCursor: [show] } }, uPlot.join(tables(figure)), place);
    const count = names ? names.length : u.data[0].length;
    const go = (index) => u.setCursor({ left: u.valToPos(names ? index : u.data[0][index], "x"), top: 10 });
    keys(place, { ArrowLeft: -1, ArrowRight: 1, PageDown: 10, PageUp: -10, Home: -count, End: count },
      (step) => go(clamp(at === null ? (step < 0 && step > -count ? count - 1 : 0) : at + step, 0, count - 1)),
      () => u.setCursor({ left: -10, top: -10 }));
    if (series.length > 1) toggles(place, series, (number, show) => {
      const last = places[number + 1] || u.series.length;
      for (let part = places[number]; part < last; part++) u.setSeries(part, { show });
    });
    return { resize: () => u.setSize({ width: place.clientWidth, height: place.clientHeight }),
      recolour: () => u.redraw(false, true) };
  };
  const toggles = (place, series, show) => {
    const row = place.parentElement.querySelector(".series");
    series.forEach(({ name, colour }, number) => {
      const entry = element("button", { type: "button", textContent: name });
      entry.style.setProperty("--c", colour);
      entry.setAttribute("aria-pressed", "true");
      entry.onclick = () => {
        const on = entry.getAttribute("aria-pressed") !== "true";
        entry.setAttribute("aria-pressed", String(on));
        show(number, on);
      };
      row.append(entry);
    });
  };
  const keys = (place, steps, move, leave) => {
    place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return leave();
      if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return undefined;
      event.preventDefault();
      return move(steps[event.key]);
    });
    place.addEventListener("blur", leave);
  };

  // Grids: one pixel per cell, blown up without smoothing.
  const SCALE = [[0, [59, 130, 246, 10]], [20, [59, 130, 246, 56]], [300, [59, 130, 246, 255]],
    [700, [124, 58, 237, 255]], [1000, [245, 158, 11, 255]]];
  const shade = (value) => {
    const upper = Math.max(1, SCALE.findIndex(([stop]) => value <= stop));
    const [[from, a], [to, b]] = [SCALE[upper - 1], SCALE[upper]];
    return a.map((part, i) => Math.round(part + (b[i] - part) * (value - from) / (to - from)));
  };
  const cells = ({ names, cells: values }) => {
    const size = names.length, small = element("canvas", { width: size, height: size }), pixels = new ImageData(size, size);
    values.forEach((value, i) => pixels.data.set(shade(value), 4 * i));
    small.getContext("2d").putImageData(pixels, 0, 0);
    return small;
  };
  const grid = (place, figure) => {
    const { names, rows, columns, unit } = figure, size = names.length, small = cells(figure), tooltip = tip(place);
    const canvas = place.appendChild(element("canvas")), frame = place.appendChild(element("div", { className: "cell", hidden: true }));
    let left = 0, top = 8, width = 1, height = 1, at = null;
    const draw = () => {
      const wide = place.clientWidth, tall = place.clientHeight, ratio = devicePixelRatio, context = canvas.getContext("2d");
      canvas.width = wide * ratio; canvas.height = tall * ratio;
      canvas.style.width = wide + "px"; canvas.style.height = tall + "px";
      const labels = Math.min(130, wide / 3, 8 + widest(names)), named = Math.min(wide - labels, tall - labels) / size >= 11;
      left = 20 + (named ? labels : 0); width = (wide - left - 4) / size;
      height = (tall - top - 20 - (named ? labels : 0)) / size;
      context.scale(ratio, ratio);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, left, top, size * width, size * height);
      context.strokeStyle = line; context.strokeRect(left, top, size * width, size * height);
      context.fillStyle = ink; context.font = "11px system-ui, sans-serif"; context.textAlign = "right"; context.textBaseline = "middle";
      if (named) names.forEach((name, i) => {
        context.fillText(name, left - 5, top + (i + 0.5) * height, labels);
        context.save(); context.translate(left + (i + 0.5) * width, top + size * height + 5); context.rotate(-Math.PI / 2);
        context.fillText(name, 0, 0, labels); context.restore();
      });
      context.fillStyle = soft; context.textAlign = "center";
      context.fillText(columns, left + size * width / 2, tall - 7);
      context.save(); context.translate(8, top + size * height / 2); context.rotate(-Math.PI / 2);
      context.fillText(rows, 0, 0); context.restore();
    };
    const leave = () => { at = null; frame.hidden = true; tooltip.hide(); };
    const go = (row, column) => {
      at = [clamp(row, 0, size - 1), clamp(column, 0, size - 1)];
      const [x, y] = [left + at[1] * width, top + at[0] * height];
      frame.hidden = false;
      Object.assign(frame.style, { left: x + "px", top: y + "px", width: width + "px", height: height + "px" });
      const share = figure.cells[at[0] * size + at[1]] / 10;
      tooltip.show(x + width, y, names[at[0]], [[null, at[0] === at[1] ? "correct" : "predicted as " + names[at[1]], share + unit]]);
    };
    canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
      const column = Math.floor((offsetX - left) / width), row = Math.floor((offsetY - top) / height);
      if (column >= 0 && column < size && row >= 0 && row < size) go(row, column); else leave();
    });
    canvas.addEventListener("pointerleave", leave);
    keys(place, { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] },
      ([down, right]) => at ? go(at[0] + down, at[1] + right) : go(0, 0), leave);
    const stops = SCALE.map(([stop, colour]) => `rgba(${colour.slice(0, 3)},${colour[3] / 255}) ${stop / 10}%`);
    const bar = element("i");
    bar.style.background = `linear-gradient(90deg, ${stops})`;
    place.parentElement.querySelector(".series").append(element("span", { className: "scale" }, "0 %", bar, "100 %"));
    draw();
    return { resize: () => { leave(); draw(); }, recolour: draw };
  };

  // Charts on the first screen are drawn at once, the others one by one while the page stays responsive.
  const drawn = new Map();
  const sizes = new Map(), size = (place) => place.clientWidth + "x" + place.clientHeight;
  const watcher = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (sizes.get(target) === size(target)) return;  // the first call comes right after drawing
    sizes.set(target, size(target));
    drawn.get(target).resize();
  }));
  const draw = (place) => {
    try {
      const figure = figures[place.dataset.figure];
      drawn.set(place, figure.kind === "grid" ? grid(place, figure) : plot(place, figure));
      sizes.set(place, size(place));
      watcher.observe(place);
    } catch (error) {
      place.textContent = "This browser cannot draw the chart; its numbers are in the table below.";
      console.error(error);
    }
  };
  const places = [...document.querySelectorAll(".plot")];
  const seen = places.filter((place) => place.getBoundingClientRect().top < innerHeight);
  const rest = places.filter((place) => !seen.includes(place));
  const next = () => {
    const place = rest.shift();
    if (place) { draw(place); setTimeout(next); } else document.documentElement.dataset.drawn = "true";
  };
  seen.forEach(draw);
  setTimeout(next);
  return () => { colours(); drawn.forEach(({ recolour }) => recolour()); };
};
