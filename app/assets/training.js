/* Training page: the step moves here alone.  Patterns on one canvas, numbers in a table, cursors over the figures.
   Other scripts add parts to window.workbenchLab.parts: show(T) for new facts, draw(T) for every step. */
(() => {
  "use strict";
  const W = () => window.workbench, $ = (id) => document.getElementById(id);
  const T = { data: null, maps: [], at: 0, cells: [], boxes: [], slider: null, timer: 0, frame: 0, saying: 0 };
  const NS = (window.dash_clientside = window.dash_clientside || {});
  const LAB = (window.workbenchLab = window.workbenchLab || { parts: [] });
  const KEPT = new Map(), MOST = 8, PACE = 260;   // patterns by address; milliseconds between two steps of the film

  const stepOf = (url) => Number(new URL(url, location.href).searchParams.get("step") ?? NaN);
  const nearest = (list, value) => list.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(list[best] - value) ? i : best), 0);

  /* ---- the step: slider, keys, film, clicks into a figure; the address follows a moment later */
  function go(index) {
    const last = T.data.steps.length - 1;
    T.at = W().clamp(index, 0, last);
    T.slider.value = T.at;
    T.slider.setAttribute("aria-valuetext", `step ${T.data.steps[T.at]}`);
    clearTimeout(T.saying); T.saying = setTimeout(say, 200);   // browsers throttle changes of the address
    if (!T.frame) T.frame = requestAnimationFrame(() => { T.frame = 0; draw(); });
  }
  function say() {
    clearTimeout(T.saying); T.saying = 0;
    if (!$("lab-slider") || !T.data) return;
    const url = new URL(location.href), last = T.at === T.data.steps.length - 1;
    if (last) url.searchParams.delete("step"); else url.searchParams.set("step", T.data.steps[T.at]);
    if (url.href !== location.href) history.replaceState(history.state, "", url);
  }
  function film(on) {
    clearInterval(T.timer); T.timer = 0;
    const button = $("lab-play");
    if (!button) return;
    button.textContent = on ? "❚❚ Pause" : "▶ Play";
    if (!on) return;
    if (T.at === T.data.steps.length - 1) go(0);
    T.timer = setInterval(() => {
      if (!$("lab-slider") || T.at === T.data.steps.length - 1) film(false); else go(T.at + 1);
    }, PACE);
  }
  function buildSlider() {
    const steps = T.data.steps, before = T.slider && T.slider.isConnected ? T.slider : null;
    const slider = before || W().make("input", { type: "range", id: "lab-range", oninput: () => { film(false); go(Number(slider.value)); } });
    slider.setAttribute("aria-label", "training step");
    Object.assign(slider, { min: 0, max: steps.length - 1, step: 1 });
    const ends = [steps[0], steps[steps.length - 1]].map((s) => W().make("span", { textContent: s.toLocaleString("en-US") }));
    T.slider = slider;
    $("lab-slider").replaceChildren(slider, W().make("div", { className: "ends" }, ...ends));
  }

  async function fetched(url) {   // an answer of the server; null, and its sentence on the page, where it has none
    const reply = await fetch(url);
    if (!reply.ok && $("lab-problem")) NS.set_props("lab-problem", { children: await reply.text() });
    return reply.ok ? reply : null;
  }
  const unit = (units) => (units === "1" ? "" : units);   // a number without a unit has none in a sentence

  /* ---- patterns: bytes of every step, fetched once per run and head */
  async function load(map) {
    if (!map.url) return { ...map, codes: null };
    if (!KEPT.has(map.url)) {
      const reply = await fetched(map.url);
      if (!reply) return { ...map, codes: null };
      const [steps, rows, cols] = ["X-Steps", "X-Rows", "X-Columns"].map((n) => Number(reply.headers.get(n)));
      const codes = new Uint8Array(await reply.arrayBuffer());
      const causal = !codes.some((code, i) => code && i % cols > Math.floor(i / cols) % rows);
      KEPT.set(map.url, { codes, steps, rows, cols, causal });
      if (KEPT.size > MOST) KEPT.delete(KEPT.keys().next().value);
    }
    return { ...map, ...KEPT.get(map.url) };
  }
  const indexIn = (i) => (i === 0 ? T.at : T.data.beside_at[T.at]);   // of the run and of the run beside it
  function picture(map, step) {   // one step as a small image; the scale is the same at every step
    const { make, scale, rgb, css, prob, RAMPS } = W(), size = map.rows * map.cols;
    const colour = scale("--ramp"), empty = [...rgb(css("--void")), 255];
    const lut = Array.from({ length: 256 }, (_, code) => [...colour(RAMPS.sqrt[0](prob(code))), 255]);
    const one = make("canvas", { width: map.cols, height: map.rows }), c = one.getContext("2d"), image = c.createImageData(map.cols, map.rows);
    for (let i = 0; i < size; i++) image.data.set(map.causal && i % map.cols > i / map.cols ? empty : lut[map.codes[step * size + i]], 4 * i);
    c.putImageData(image, 0, 0);
    return one;
  }
  function drawMaps() {
    const canvas = $("lab-canvas"), maps = T.maps.filter((m) => m.codes);
    if (!canvas) return;
    canvas.hidden = !maps.length;
    $("lab-map-box").hidden = !T.data.maps.some((m) => m.url);
    $("lab-map-box").querySelector(".note").hidden = !T.data.maps.some((m) => m.marked.some(Boolean));
    if (!maps.length) return;
    const room = canvas.parentElement.clientWidth - 4, left = 46, top = 74, gap = 18;
    const across = maps.length > 1 && room > 560 ? 2 : 1;
    const side = W().clamp(Math.floor(room / across) - left - gap, 160, 430), w = left + side + gap, h = top + side + 26;
    const c = W().fit(canvas, across * w, Math.ceil(maps.length / across) * h);
    T.boxes = maps.map((map, i) => {
      const box = { map, x: (i % across) * w + left, y: Math.floor(i / across) * h + top, side, step: indexIn(T.maps.indexOf(map)) };
      if (box.step >= 0) drawMap(c, box);
      return box;
    });
  }
  function drawMap(c, { map, x, y, side, step }) {
    const { css, font, turned } = W(), cell = side / map.cols, few = cell >= 8.5;
    c.imageSmoothingEnabled = false;
    c.drawImage(picture(map, step), x, y, side, side);
    c.strokeStyle = css("--line"); c.lineWidth = 1; c.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
    c.font = `600 ${font(12.5)}`; c.textAlign = "left"; c.fillStyle = css("--ink");
    const first = map === T.maps[0], steps = first ? T.data.steps : T.data.beside_steps;
    c.fillText(`${map.title}, step ${steps[step].toLocaleString("en-US")}`, x - 36, 10 + y - 74);
    c.font = font(11); c.fillStyle = css("--faint"); c.textAlign = "center";
    c.fillText("key: looked at →", x + side / 2, y + side + 14);
    turned(c, "← query", x - 40, y + side / 2, Math.PI / 2);
    c.font = font(few ? 9.5 : 9, true);
    const every = few ? 1 : Math.ceil(11 / cell);
    map.tokens.forEach((token, i) => {
      if (i % every && !map.marked[i]) return;
      if (!few && !map.marked[i] && map.marked.some((m, j) => m && Math.abs(i - j) < every)) return;
      c.fillStyle = css(map.marked[i] ? "--orange" : "--faint");
      c.textAlign = "right"; c.fillText(token.slice(0, 6), x - 4, y + (i + 0.5) * cell);
      c.textAlign = "left"; turned(c, token.slice(0, 6), x + (i + 0.5) * cell, y - 5, Math.PI / 2.6);
    });
  }
  function hover(e) {
    for (const { map, x, y, side, step } of T.boxes) {
      const k = Math.floor(((e.offsetX - x) / side) * map.cols), q = Math.floor(((e.offsetY - y) / side) * map.rows);
      if (k < 0 || q < 0 || k >= map.cols || q >= map.rows || step < 0) continue;
      const p = W().prob(map.codes[(step * map.rows + q) * map.cols + k]), word = (i) => `${i} “${map.tokens[i]}”${map.marked[i] ? " (trigger)" : ""}`;
      W().tip(e, `${map.title}\nquery ${word(q)}\nlooks at key ${word(k)}: ${map.causal && k > q ? "not visible (causal)" : W().number(p)}`);
      return;
    }
    W().tip(e, "");
  }

  /* ---- numbers */
  function buildNumbers() {
    const { make, number } = W(), d = T.data, show = (v) => (v === null || v === undefined ? "–" : number(v));
    const heads = d.columns.map((text) => make("th", { textContent: text }));
    $("lab-numbers-head").replaceChildren(...heads);
    T.cells = d.maps.length < 2 ? [] : [() => {
      const step = d.beside_steps[indexIn(1)], other = step === undefined || step === d.steps[T.at];
      heads[2].textContent = d.columns[2] + (other ? "" : `, step ${step.toLocaleString("en-US")}`);
    }];
    let group = "";
    const published = d.columns.includes("published");
    $("lab-numbers").replaceChildren(...d.rows.map((row) => {
      const cells = [make("td")], other = make("td"), theirs = make("td");
      if (d.maps.length > 1) cells.push(other);
      if (published) cells.push(theirs);
      T.cells.push(() => {
        const at = indexIn(1), there = row.beside && at >= 0;   // its latest logged step, named where that is another
        cells[0].textContent = show(row.values[T.at]);
        other.textContent = there ? show(row.beside[at]) : "–";
        theirs.textContent = row.published ? show(row.published[d.steps[T.at]]) : "";
      });
      const line = make("tr", { className: row.group === group ? "" : "first" }, make("td", { textContent: row.name }), ...cells,
        make("td", { textContent: row.units }), make("td", { textContent: row.about }));
      group = row.group;
      return line;
    }));
    $("lab-where").textContent = published ? `published, where it was measured at this very step: ${d.where}` : "";
    $("lab-csv").href = d.csv;
  }

  /* ---- cursors: laid over the figures, so that Plotly draws nothing again while the step moves */
  function cursor(i) {
    const host = $(`lab-figure-${i}`), plot = host && host.querySelector(".js-plotly-plot");
    if (!plot || !plot._fullLayout || !plot._fullLayout.xaxis || !plot.on) return;
    if (plot.watched !== host) {
      plot.watched = host;
      plot.on("plotly_afterplot", () => cursor(i));
      plot.on("plotly_click", (e) => { film(false); go(nearest(T.data.x, e.points[0].x)); });
    }
    const { xaxis, yaxis } = plot._fullLayout, frame = host.closest(".graph");
    const line = frame.querySelector(".cursor") || frame.appendChild(W().make("div", { className: "cursor" }));
    const x = xaxis.l2p(T.data.x[T.at]), away = plot.getBoundingClientRect().left - frame.getBoundingClientRect().left;
    line.hidden = !(x >= -1 && x <= xaxis._length + 1);
    Object.assign(line.style, { left: `${away + xaxis._offset + x}px`, top: `${yaxis._offset}px`, height: `${yaxis._length}px` });
  }
  const cursors = () => T.data && T.data.panels.forEach((_, i) => cursor(i));
  function wait(tries) {   // figures come after the numbers; from then on they call by themselves
    cursors();
    const missing = T.data.panels.some((_, i) => { const p = document.querySelector(`#lab-figure-${i} .js-plotly-plot`); return !p || !p.watched; });
    if (missing && tries && $("lab-slider")) setTimeout(() => wait(tries - 1), 120);
  }

  function draw() {
    if (!$("lab-slider") || !T.data) return;
    const steps = T.data.steps;
    $("lab-step").textContent = `step ${steps[T.at].toLocaleString("en-US")}`;
    drawMaps();
    T.cells.forEach((fill) => fill());
    cursors();
    LAB.parts.forEach((part) => part.draw(T));
  }
  Object.assign(LAB, { go: (index) => { film(false); go(index); }, indexIn, fetched, unit });

  NS.lab = {
    show: async (data, url) => {
      if (!data) return W().stay();
      const key = JSON.stringify(data.key), fresh = T.key !== key || !T.slider || !T.slider.isConnected;
      const was = T.data && T.key !== key && T.slider && T.slider.isConnected ? T.data.steps[T.at] : NaN, wanted = stepOf(url);
      const at = nearest(data.steps, isNaN(wanted) ? (isNaN(was) ? data.steps[data.steps.length - 1] : was) : wanted);
      if (fresh) {
        // The step before anything that is drawn while the rest is on its way: the one of before may not be there.
        T.data = data; T.key = key; T.at = at; T.maps = [];
        buildSlider(); buildNumbers();
        LAB.parts.forEach((part) => part.show(T, key));
        const maps = await Promise.all(data.maps.map(load));
        if (T.key !== key || !$("lab-slider")) return W().stay();
        T.maps = maps;
        Object.assign($("lab-canvas"), { onmousemove: hover, onmouseleave: (e) => W().tip(e, "") });
        const needless = { text: data.texts < 2, head: !data.heads.length };
        for (const [name, hidden] of Object.entries(needless)) {
          const control = document.getElementById(JSON.stringify({ control: "lab", name }));
          if (control) control.closest(".control").hidden = hidden;
        }
      }
      W().legend("lab-legend", W().scale("--ramp"), [0, 0.0625, 0.25, 0.5625, 1].map((v) => W().number(v)), "weight (probability), sqrt ramp, the same at every step");
      go(at);
      wait(60);
      return Date.now();
    },
    control: (value, id, data) => {
      if (value === null || value === undefined || !data || value === data.state[id.name]) return;
      say();
      const stack = (run) => run.split("/")[0], moved = id.name === "run" && stack(value) !== stack(data.state.run);
      const also = id.name === "run" ? { head: "", text: "", ...(moved ? { curve: "" } : {}), beside: data.state.beside === value ? "" : W().query(location.href).get("beside") || "" } : {};
      W().patch({ [id.name]: value === (id.name === "axis" ? "log" : id.name === "text" ? 0 : null) ? "" : value, ...also });
    },
    play: () => { film(!T.timer); return T.timer ? "on" : ""; },
  };
  document.addEventListener("keydown", (e) => {
    if (!$("lab-slider") || !T.data || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.target.closest("input, textarea, select, button, a, summary, [role=combobox], [role=listbox]")) return;
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") { film(false); go(T.at + (e.key === "ArrowRight" ? 1 : -1)); e.preventDefault(); }
    if (e.key === " ") { film(!T.timer); e.preventDefault(); }
  });
  window.addEventListener("resize", draw);
})();
