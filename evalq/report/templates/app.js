"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Tooltips: the SVG titles, shown at once and on keyboard focus too.
  const tip = $("tip");
  const show = (node, text) => {
    const box = node.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const wide = tip.offsetWidth, high = tip.offsetHeight;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - wide / 2), innerWidth - wide - 8);
    const above = box.top - high - 8;
    tip.style.left = left + "px";
    tip.style.top = (above > 8 ? above : box.bottom + 8) + "px";
  };
  const hide = () => { tip.hidden = true; };
  for (const point of document.querySelectorAll("svg .pt")) {
    const title = point.querySelector("title");
    if (!title) continue;
    const text = title.textContent;
    if (point.hasAttribute("tabindex")) {
      point.setAttribute("role", "img");
      point.setAttribute("aria-label", text);
    }
    title.remove();
    for (const on of ["pointerenter", "focus"]) point.addEventListener(on, () => show(point, text));
    for (const off of ["pointerleave", "blur"]) point.addEventListener(off, hide);
    const index = point.dataset.variant;
    if (index !== undefined) {
      const go = () => { location.hash = "#v" + index; };
      point.setAttribute("role", "link");
      point.addEventListener("click", go);
      point.addEventListener("keydown", (e) => { if (e.key === "Enter") go(); });
    }
  }
  addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
  for (const cell of document.querySelectorAll("#heat .cell")) {
    const text = cell.title;
    cell.addEventListener("pointerenter", () => { cell.removeAttribute("title"); show(cell, text); });
    cell.addEventListener("pointerleave", () => { cell.title = text; hide(); });
  }

  // The frontier zooms: drag a rectangle, hold Ctrl and turn the wheel, or use the buttons.
  const SVG = "http://www.w3.org/2000/svg";
  const drawn = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const niceTicks = ([low, high], wanted) => {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw * 0.999);
    const out = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
    return out;
  };
  for (const svg of document.querySelectorAll("svg[data-plane]")) {
    const plane = JSON.parse(svg.dataset.plane);
    const [left, top, right, bottom] = plane.box;
    let view = { x: plane.x.slice(), y: plane.y.slice() };
    const project = (range, value, from, to) => from + (value - range[0]) / (range[1] - range[0]) * (to - from);
    const px = (ranges, x, y) => [project(ranges.x, x, left, right), project(ranges.y, y, bottom, top)];
    const points = [...svg.querySelectorAll(".pt")].map((node) => ({ node, x: Number(node.dataset.x), y: Number(node.dataset.y) }));
    const scales = svg.querySelector(".scales"), steps = svg.querySelector(".steps");
    const redraw = () => {
      const parts = [];
      for (const tick of niceTicks(view.y, 5)) {
        const at = project(view.y, tick, bottom, top);
        parts.push(drawn("line", { x1: left, x2: right, y1: at, y2: at, class: "grid" }));
        parts.push(drawn("text", { x: left - 8, y: at + 4, class: "tick", "text-anchor": "end" }, Number((100 * tick).toPrecision(6)) + " %"));
      }
      for (const tick of niceTicks(view.x, right - left > 450 ? 6 : 4)) {
        const at = project(view.x, tick, left, right);
        parts.push(drawn("line", { x1: at, x2: at, y1: bottom, y2: bottom + 5, class: "axis" }));
        parts.push(drawn("text", { x: at, y: bottom + 20, class: "tick", "text-anchor": "middle" }, tick.toLocaleString("en", { maximumSignificantDigits: 6 })));
      }
      parts.push(drawn("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
      scales.replaceChildren(...parts);
      for (const { node, x, y } of points) {
        const [oldX, oldY] = px(plane, x, y), [newX, newY] = px(view, x, y);
        const out = newX < left - 1 || newX > right + 1 || newY < top - 22 || newY > bottom + 1;
        node.style.display = out ? "none" : "";
        node.setAttribute("transform", `translate(${newX - oldX} ${newY - oldY})`);
        const bar = node.querySelector(".bar");
        if (bar && node.dataset.low) {
          const limit = (v) => Math.min(bottom, Math.max(top - 20, project(view.y, Number(v), bottom, top))) - (newY - oldY);
          bar.setAttribute("y1", limit(node.dataset.low));
          bar.setAttribute("y2", limit(node.dataset.high));
        }
        const label = svg.querySelector(`.name[data-of="${Number(node.dataset.variant)}"]`);
        if (label) {
          label.style.display = out ? "none" : "";
          label.setAttribute("transform", `translate(${newX - oldX} ${newY - oldY})`);
        }
      }
      if (steps) {
        const on = points.filter((p) => p.node.dataset.on).sort((a, b) => a.x - b.x).map((p) => px(view, p.x, p.y));
        const far = (v) => Math.max(-1e5, Math.min(1e5, v)).toFixed(1);
        steps.setAttribute("d", on.map(([x, y], i) => i === 0 ? `M${far(x)},${far(y)}` : plane.less ? `H${far(x)}V${far(y)}` : `V${far(y)}H${far(x)}`).join(""));
      }
      reset.disabled = view.x[0] === plane.x[0] && view.x[1] === plane.x[1] && view.y[0] === plane.y[0] && view.y[1] === plane.y[1];
    };
    const zoom = (factor, centre) => {
      for (const key of ["x", "y"]) {
        const [low, high] = view[key], c = Math.min(high, Math.max(low, centre[key]));
        const range = [c - (c - low) * factor, c + (high - c) * factor], full = plane[key];
        if (range[1] - range[0] >= full[1] - full[0]) view[key] = full.slice();
        else if (range[1] - range[0] > (full[1] - full[0]) / 500) view[key] = range;
      }
      hide();
      redraw();
    };
    const focus = () => {
      const chosen = points.find((p) => p.node.dataset.chosen) || points[0];
      return { x: chosen.x, y: chosen.y };
    };
    const tools = make("div", "tools");
    const button = (name, label, action) => {
      const node = make("button", "", name);
      node.type = "button";
      node.setAttribute("aria-label", label);
      node.title = label;
      node.addEventListener("click", action);
      tools.append(node);
      return node;
    };
    button("+", "+ zoom in on the recommended variant", () => zoom(0.6, focus()));
    button("−", "− zoom out", () => zoom(1 / 0.6, focus()));
    const reset = button("reset", "reset: show everything", () => { view = { x: plane.x.slice(), y: plane.y.slice() }; redraw(); });
    reset.disabled = true;
    svg.before(tools);
    const where = (event) => {
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [Math.min(right, Math.max(left, p.x)), Math.min(bottom, Math.max(top, p.y))];
    };
    const value = ([x, y]) => ({ x: view.x[0] + (x - left) / (right - left) * (view.x[1] - view.x[0]), y: view.y[0] + (bottom - y) / (bottom - top) * (view.y[1] - view.y[0]) });
    let start = null, band = null;
    svg.addEventListener("pointerdown", (e) => {
      if (e.button || e.pointerType !== "mouse" || e.target.closest(".pt")) return;
      start = where(e);
      svg.setPointerCapture(e.pointerId);
    });
    svg.addEventListener("pointermove", (e) => {
      if (!start) return;
      const end = where(e);
      if (!band) { band = drawn("rect", { class: "band" }); svg.append(band); }
      for (const [key, v] of Object.entries({ x: Math.min(start[0], end[0]), y: Math.min(start[1], end[1]), width: Math.abs(end[0] - start[0]), height: Math.abs(end[1] - start[1]) })) band.setAttribute(key, v);
    });
    svg.addEventListener("pointerup", (e) => {
      if (!start) return;
      const end = where(e), a = value(start), b = value(end);
      const big = Math.abs(end[0] - start[0]) > 12 && Math.abs(end[1] - start[1]) > 12;
      start = null;
      if (band) { band.remove(); band = null; }
      if (big) { view = { x: [Math.min(a.x, b.x), Math.max(a.x, b.x)], y: [Math.min(a.y, b.y), Math.max(a.y, b.y)] }; redraw(); }
    });
    svg.addEventListener("dblclick", () => reset.click());
    svg.addEventListener("wheel", (e) => {
      if (!e.ctrlKey) return;
      e.preventDefault();
      zoom(e.deltaY < 0 ? 0.8 : 1.25, value(where(e)));
    }, { passive: false });
  }

  // Heat map: slices that hold others fold.
  const heatRows = [...document.querySelectorAll("#heat tbody tr:not(.overall)")];
  const closed = new Set();
  const refold = () => {
    for (const row of heatRows) {
      const name = row.dataset.slice;
      row.hidden = [...closed].some((c) => name !== c && name.startsWith(c + "/"));
    }
  };
  for (const row of heatRows) {
    const name = row.dataset.slice, head = row.querySelector("th");
    if (!heatRows.some((r) => r.dataset.slice.startsWith(name + "/"))) continue;
    const button = make("button", "fold", "▾");
    button.type = "button";
    button.setAttribute("aria-expanded", "true");
    button.setAttribute("aria-label", "slices of " + name);
    button.addEventListener("click", () => {
      const open = closed.delete(name);
      if (!open) closed.add(name);
      button.textContent = open ? "▾" : "▸";
      button.setAttribute("aria-expanded", String(open));
      refold();
    });
    head.prepend(button);
  }

  // Flips: chunks are unpacked when they are needed, and only the rows in view exist.
  const metaNode = $("flips-meta");
  if (!metaNode || !("DecompressionStream" in window)) return;
  const meta = JSON.parse(metaNode.textContent);
  const packed = [...document.querySelectorAll(".flips-chunk")];
  const ready = new Map();
  const unpack = (index) => {
    if (!ready.has(index)) {
      ready.set(index, (async () => {
        const bytes = Uint8Array.from(atob(packed[index].textContent), (c) => c.charCodeAt(0));
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
        const chunk = JSON.parse(await new Response(stream).text());
        chunks[index] = chunk;
        return chunk;
      })());
    }
    return ready.get(index);
  };
  const chunks = [];
  const all = [];
  meta.chunks.forEach((chunk, c) => chunk.kinds.forEach((k, i) => all.push({ c, i, variant: k[0], lost: k[1], slice: chunk.slice })));

  const variantSelect = $("f-variant"), sliceSelect = $("f-slice"), direction = $("f-direction"), search = $("f-search");
  const options = (select, values) => {
    for (const [value, name, count] of values) {
      const option = make("option", "", name + " (" + count + ")");
      option.value = value;
      select.append(option);
    }
  };
  const tally = (key) => {
    const counts = new Map();
    for (const flip of all) counts.set(flip[key], (counts.get(flip[key]) || 0) + 1);
    return counts;
  };
  const perVariant = tally("variant");
  options(variantSelect, meta.variants.map((name, i) => [i, name, perVariant.get(i) || 0]).filter((v) => v[2]));
  if (perVariant.get(meta.preferred)) variantSelect.value = String(meta.preferred);
  options(sliceSelect, [...tally("slice")].map(([name, count]) => [name, name, count]));

  const rows = $("rows"), pad = $("pad"), detail = $("detail"), count = $("f-count");
  const HEIGHT = 74;
  let shown = [], selected = 0, round = 0;

  const oneLine = (text) => {
    const lines = text.trim().split(/\n+/);
    return (lines.length > 2 ? lines.slice(-2).join(" ⏎ ") : lines.join(" ⏎ ")).slice(0, 300);
  };
  const fill = (node, flip) => {
    const chunk = chunks[flip.c];
    node.replaceChildren();
    const line = make("div", "meta");
    line.append(make("span", flip.lost ? "lost" : "gained", flip.lost ? "lost" : "gained"), " · " + flip.slice + " · " + meta.variants[flip.variant]);
    node.append(line);
    if (!chunk) { node.append(make("div", "", "…")); return; }
    const data = chunk.flips[flip.i], item = chunk.items[data[2]];
    node.append(make("div", "", oneLine(item[2])), make("div", "meta", "expected " + oneLine(item[3]) + " · parent " + oneLine(item[4]).slice(-60) + " · variant " + oneLine(data[3]).slice(-60)));
    for (const part of node.children) part.dir = "auto";
  };
  const live = new Map();
  const draw = () => {
    const first = Math.max(0, Math.floor(rows.scrollTop / HEIGHT) - 4);
    const last = Math.min(shown.length, Math.ceil((rows.scrollTop + rows.clientHeight) / HEIGHT) + 4);
    for (const [at, node] of live) if (at < first || at >= last) { node.remove(); live.delete(at); }
    for (let at = first; at < last; at++) {
      const flip = shown[at];
      let node = live.get(at);
      if (!node) {
        node = make("div", "flip");
        node.id = "flip-" + at;
        node.setAttribute("role", "option");
        node.setAttribute("aria-posinset", String(at + 1));
        node.setAttribute("aria-setsize", String(shown.length));
        node.style.top = at * HEIGHT + "px";
        node.addEventListener("click", () => select(at));
        live.set(at, node);
        rows.append(node);
        fill(node, flip);
        if (!chunks[flip.c]) {
          const mine = round;
          unpack(flip.c).then(() => { if (mine === round && live.get(at) === node) fill(node, flip); });
        }
      }
      node.setAttribute("aria-selected", String(at === selected));
    }
  };

  // Word-wise difference by the longest common subsequence; long answers are compared whole.
  const words = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}]+|[^\s]/gu) || [];
  const difference = (a, b) => {
    const n = a.length, m = b.length;
    if (n * m > 250000) return [a.map((w) => [w, 1]), b.map((w) => [w, 1])];
    const table = new Uint16Array((n + 1) * (m + 1));
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
      table[i * (m + 1) + j] = a[i] === b[j] ? table[(i + 1) * (m + 1) + j + 1] + 1 : Math.max(table[(i + 1) * (m + 1) + j], table[i * (m + 1) + j + 1]);
    }
    const left = [], right = [];
    let i = 0, j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && a[i] === b[j]) { left.push([a[i++], 0]); right.push([b[j++], 0]); }
      else if (j >= m || (i < n && table[(i + 1) * (m + 1) + j] >= table[i * (m + 1) + j + 1])) left.push([a[i++], 1]);
      else right.push([b[j++], 1]);
    }
    return [left, right];
  };
  const answer = (title, parts, tag) => {
    const box = make("div"), body = make("div", "answer");
    body.dir = "auto";
    for (const [word, changed] of parts) body.append(changed ? make(tag, "", word) : document.createTextNode(word));
    if (!parts.length) body.append(make("em", "", "(empty)"));
    box.append(make("h4", "", title), body);
    return box;
  };
  const select = async (at) => {
    if (!shown[at]) return;
    selected = at;
    rows.setAttribute("aria-activedescendant", "flip-" + at);
    draw();
    const flip = shown[at], mine = ++picks;
    const chunk = await unpack(flip.c);
    if (mine !== picks) return;
    const data = chunk.flips[flip.i], item = chunk.items[data[2]];
    const head = make("h3");
    head.append(make("span", flip.lost ? "lost" : "gained", flip.lost ? "lost" : "gained"), " · " + flip.slice + " · " + meta.variants[flip.variant]);
    const prompt = make("pre", "", item[2]), target = make("div", "answer", item[3]);
    prompt.dir = target.dir = "auto";
    const [left, right] = difference(words(item[4]), words(data[3]));
    const both = make("div", "pair");
    both.append(answer("parent", left, "del"), answer(meta.variants[flip.variant], right, "ins"));
    detail.replaceChildren(head, make("p", "small", "task " + item[0] + ", item " + item[1]), make("h4", "", "prompt"), prompt, make("h4", "", "expected"), target, both);
    detail.scrollTop = 0;
  };
  let picks = 0;

  const apply = async () => {
    const mine = ++round;
    const variant = variantSelect.value, slice = sliceSelect.value, way = direction.value;
    const needle = search.value.trim().toLowerCase();
    let found = all.filter((f) => (variant === "" || f.variant === Number(variant)) && (slice === "" || f.slice === slice) && (way === "" || f.lost === Number(way)));
    if (needle) {
      count.textContent = "searching…";
      const wanted = [...new Set(found.map((f) => f.c))];
      for (const c of wanted) {
        await unpack(c);
        if (mine !== round) return;
      }
      found = found.filter((f) => {
        const data = chunks[f.c].flips[f.i], item = chunks[f.c].items[data[2]];
        return [item[2], item[3], item[4], data[3]].some((t) => t.toLowerCase().includes(needle));
      });
    }
    shown = found;
    for (const node of live.values()) node.remove();
    live.clear();
    pad.style.height = shown.length * HEIGHT + "px";
    rows.scrollTop = 0;
    count.textContent = shown.length.toLocaleString("en") + " of " + all.length.toLocaleString("en");
    if (shown.length) select(0); else detail.replaceChildren(make("p", "empty", "No flip matches."));
    draw();
  };
  let waiting = 0;
  for (const control of [variantSelect, sliceSelect, direction]) control.addEventListener("change", apply);
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 180); });
  search.form.addEventListener("submit", (e) => e.preventDefault());
  let frame = 0;
  rows.addEventListener("scroll", () => { if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); }); }, { passive: true });
  rows.addEventListener("keydown", (e) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 7, PageUp: -7, Home: -shown.length, End: shown.length }[e.key];
    if (!step) return;
    e.preventDefault();
    const next = Math.min(shown.length - 1, Math.max(0, selected + step));
    if (next * HEIGHT < rows.scrollTop) rows.scrollTop = next * HEIGHT;
    if ((next + 1) * HEIGHT > rows.scrollTop + rows.clientHeight) rows.scrollTop = (next + 1) * HEIGHT - rows.clientHeight;
    select(next);
  });
  $("browser").hidden = false;
  $("static-flips").style.display = "none";
  apply();
})();
