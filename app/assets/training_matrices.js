/* Training page: matrices on one canvas and lines over a number, both moving with the step. */
(() => {
  "use strict";
  const W = () => window.workbench, $ = (id) => document.getElementById(id);
  const LAB = (window.workbenchLab = window.workbenchLab || { parts: [] });
  const KEPT = new Map(), MOST = 24, GAP = 22, HEAD = 34;   // numbers by address; pixels around a matrix
  const LETTER = 6.2, LONGEST = 12;   // pixels of one letter of a label, and letters that are shown of it
  let shown = { key: "", blocks: [], boxes: [] };

  /* ---- matrices: float32 of every step, fetched once per run and variable */
  async function load(url) {
    if (!KEPT.has(url)) {
      const reply = await LAB.fetched(url);
      if (!reply) return null;
      KEPT.set(url, new Float32Array(await reply.arrayBuffer()));
      if (KEPT.size > MOST) KEPT.delete(KEPT.keys().next().value);
    }
    return KEPT.get(url);
  }
  async function show(T, key) {
    const all = T.data.matrices;
    $("lab-matrix-box").hidden = !all.length;
    shown = { key, blocks: [], boxes: [] };
    legends(all);
    const values = await Promise.all(all.flatMap((m) => m.runs.map((run) => load(run.url))));
    if (shown.key !== key || !$("lab-matrices")) return;
    let next = 0;
    const loaded = all.flatMap((m) => m.runs.map((run) => ({ m, run, values: values[next++] }))).filter((one) => one.values);
    shown.blocks = loaded.flatMap((one) => one.run.blocks.map((name, block) => ({ ...one, block, name: `${one.m.name} ${name}`.trim() })));
    Object.assign($("lab-matrices"), { onmousemove: hover, onmouseleave: (e) => W().tip(e, "") });
    draw(T);
  }
  const colours = (m) => W().scale(m.signed ? "--diverge" : "--ramp");
  const share = (m, v) => (m.signed ? (v / m.limit + 1) / 2 : v / m.limit);
  function legends(all) {
    const { make, number, legend } = W();
    $("lab-matrix-legends").replaceChildren(...all.map((m, i) => make("div", { id: `lab-matrix-legend-${i}`, className: "legend" })));
    all.forEach((m, i) => {
      const { row_dim, column_dim } = m.runs[0], ends = m.signed ? [number(-m.limit), "0", number(m.limit)] : ["0", number(m.limit)];
      const way = m.signed ? "; red negative, blue positive" : "";
      legend(`lab-matrix-legend-${i}`, colours(m), ends, `${[`${m.name}: ${m.about}`, LAB.unit(m.units)].filter(Boolean).join(", ")}; rows ${row_dim}, columns ${column_dim}${way}`);
    });
  }
  const longest = (labels) => Math.min(LONGEST, Math.max(...labels.map((t) => t.length)));
  const labelOf = (run) => Math.max(34, Math.ceil(longest(run.rows) * LETTER) + 8);   // room for the names of its rows
  function cellOf(run, room) {   // as large as the room of one allows; few columns are as wide as their names
    const side = W().clamp(room, 156, 330), most = Math.max(24, Math.ceil(longest(run.columns) * LETTER) + 4);
    return W().clamp(Math.floor(side / Math.max(run.rows.length, run.columns.length)), 3, most);
  }
  function place(room) {   // run by run, from left to right, wrapped where the room ends
    let x = 0, y = 0, tall = 0, of = -1;
    const boxes = [], ordered = [...shown.blocks].sort((a, b) => a.run.of - b.run.of);
    for (const one of ordered) {
      const beside = ordered.filter((b) => b.run.of === one.run.of).length;
      const label = labelOf(one.run), cell = cellOf(one.run, room / beside - label - GAP);
      const w = label + one.run.columns.length * cell, h = HEAD + one.run.rows.length * cell;
      const fresh = one.run.of !== of;
      if (fresh || (x && x + w > room)) { y += tall + (tall ? 14 : 0) + (fresh ? 24 : 0); x = 0; tall = 0; }
      boxes.push({ ...one, cell, x: x + label, y: y + HEAD, heading: fresh ? y - 12 : null });
      x += w + GAP; tall = Math.max(tall, h); of = one.run.of;
    }
    return [boxes, y + tall + 4];
  }
  function draw(T) {
    const canvas = $("lab-matrices");
    if (!canvas || !shown.blocks.length) return;
    const room = canvas.parentElement.clientWidth - 4, [boxes, height] = place(room), c = W().fit(canvas, room, height);
    const steps = [T.data.steps, T.data.beside_steps];
    shown.boxes = boxes.map((box) => ({ ...box, step: LAB.indexIn(box.run.of) }));
    for (const box of shown.boxes) {
      if (box.heading !== null) {
        c.font = `600 ${W().font(12.5)}`; c.textAlign = "left"; c.fillStyle = W().css("--ink");
        const said = box.step < 0 ? "not logged yet" : `step ${steps[box.run.of][box.step].toLocaleString("en-US")}`;
        c.fillText(`${box.run.label}, ${said}`, 0, box.heading);
      }
      drawOne(c, box);
    }
  }
  const valueAt = ({ run, values, block, step }, i, j) => values[((step * run.blocks.length + block) * run.rows.length + i) * run.columns.length + j];
  function drawOne(c, box) {
    const { css, font, paint } = W(), { run, m, cell, x, y } = box, colour = colours(m), gap = cell > 8 ? 1 : 0;
    c.font = font(11.5); c.textAlign = "left"; c.fillStyle = css("--ink");
    c.fillText(box.name, x, y - 25);
    c.font = font(10, true); c.fillStyle = css("--faint");
    const every = Math.ceil(10 / cell), wide = Math.ceil((longest(run.columns) + 0.5) * LETTER / cell);
    run.rows.forEach((text, i) => { if (i % every === 0) { c.textAlign = "right"; c.fillText(text.slice(0, LONGEST), x - 4, y + (i + 0.5) * cell); } });
    run.columns.forEach((text, j) => { if (j % wide === 0) { c.textAlign = "center"; c.fillText(text.slice(0, LONGEST), x + (j + 0.5) * cell, y - 8); } });
    if (box.step < 0) return;
    for (let i = 0; i < run.rows.length; i++) for (let j = 0; j < run.columns.length; j++) {
      const v = valueAt(box, i, j);
      c.fillStyle = isFinite(v) ? paint(colour(share(m, v))) : css("--hatch");
      c.fillRect(x + j * cell, y + i * cell, cell - gap, cell - gap);
    }
    c.strokeStyle = css("--line"); c.lineWidth = 1;
    c.strokeRect(x - 0.5, y - 0.5, run.columns.length * cell + 1 - gap, run.rows.length * cell + 1 - gap);
  }
  function hover(e) {
    for (const box of shown.boxes) {
      const { run, m, cell, x, y } = box, i = Math.floor((e.offsetY - y) / cell), j = Math.floor((e.offsetX - x) / cell);
      if (i < 0 || j < 0 || i >= run.rows.length || j >= run.columns.length || box.step < 0) continue;
      W().tip(e, `${run.label}, ${box.name}\n${run.row_dim} ${run.rows[i]}, ${run.column_dim} ${run.columns[j]}: ${W().number(valueAt(box, i, j))} ${LAB.unit(m.units)}`.trim());
      return;
    }
    W().tip(e, "");
  }
  LAB.parts.push({ show, draw });

  /* ---- sweeps: Plotly drew the axes and what does not move; the other lines follow the step */
  let busy = false;
  const same = (a, b) => a && a.length === b.length && b.every((v, i) => v === a[i]);
  function move(T, i) {
    const plot = document.querySelector(`#lab-sweep-${i} .js-plotly-plot`), lines = T.data && T.data.sweeps[i] && T.data.sweeps[i].lines;
    if (busy || !lines || !plot || !plot.data || !plot.on || !window.Plotly) return false;
    if (plot.moves !== T.key) {
      plot.moves = T.key;
      if (!plot.heard) plot.on("plotly_afterplot", () => move(T, i));   // Dash draws it anew with the theme
      plot.heard = true;
    }
    const at = lines.map((line) => LAB.indexIn(line.of)), y = lines.map((line, n) => (at[n] < 0 ? line.values[0].map(() => null) : line.values[at[n]]));
    const traces = lines.map((line) => line.trace);
    if (plot.data.length <= Math.max(...traces)) return false;
    if (traces.every((t, n) => same(plot.data[t].y, y[n]))) return true;
    busy = true;
    window.Plotly.restyle(plot, { y }, traces).then(() => { busy = false; });
    return true;
  }
  function all(T, tries) {
    const done = T.data.sweeps.map((_, i) => move(T, i));
    if (tries && done.includes(false) && $("lab-slider")) setTimeout(() => all(T, tries - 1), 120);
  }
  LAB.parts.push({ show: (T) => all(T, 60), draw: (T) => all(T, 2) });
})();
