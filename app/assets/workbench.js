/* Canvas pixels, token strip, keys, addresses; Dash does the rest.  Texts of a run go through textContent only. */
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id), root = document.documentElement;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const clamp = (x, a, b) => Math.min(b, Math.max(a, x));
  const stay = () => window.dash_clientside.no_update;
  const NS = (window.dash_clientside = window.dash_clientside || {});

  const number = (v) => {
    if (v === null || v === undefined || !isFinite(v)) return "–";
    const a = Math.abs(v);
    if (Number.isInteger(v) || a >= 1000) return Math.round(v).toLocaleString("en-US");
    if (a >= 10) return v.toFixed(1);
    if (a < 0.0005) return v.toExponential(0);
    const text = v.toFixed(a < 0.0095 ? 3 : 2);
    return a < 1 && !/^-?1/.test(text) ? text.replace("0.", ".") : text;
  };

  /* ---- colour: scales are lists of stops in the style sheet, so that themes stay in one place */
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const scale = (name) => {
    const stops = css(name).split(/\s+/).map(rgb), last = stops.length - 1;
    return (t) => {
      const at = clamp(t, 0, 1) * last, i = Math.min(Math.floor(at), last - 1);
      return stops[i].map((c, j) => Math.round(c + (stops[i + 1][j] - c) * (at - i)));
    };
  };
  const paint = (c) => `rgb(${c})`;
  const RAMPS = {   // share of the largest value -> place on the scale, and back; log begins at 1e-4
    linear: [(x) => x, (t) => t],
    sqrt: [Math.sqrt, (t) => t * t],
    log: [(x) => (x <= 0 ? 0 : clamp(1 + Math.log10(x) / 4, 0, 1)), (t) => Math.pow(10, 4 * t - 4)],
  };
  const make = (tag, props, ...children) => {
    const e = Object.assign(document.createElement(tag), props); e.append(...children); return e;
  };
  function legend(id, ramp, values, words) {
    const bar = make("canvas", { width: 256, height: 1 }), c = bar.getContext("2d");
    for (let i = 0; i < 256; i++) { c.fillStyle = paint(ramp(i / 255)); c.fillRect(i, 0, 1, 1); }
    const ticks = values.map((v) => make("span", { textContent: v }));
    $(id).replaceChildren(bar, make("div", { className: "ticks" }, ...ticks), make("div", { textContent: words }));
  }

  /* ---- addresses: inside one page they change its store, between pages Dash's router is told */
  const page = () => ($("page") ? $("page").dataset : {});
  const mounted = (url) => {
    const [, area, run, kind = area] = url.pathname.split("/").map(decodeURIComponent), here = page();
    return here.kind === kind && here.run === run;
  };
  const publish = (url) => NS.set_props(`${page().kind}-url`, { data: url.pathname + url.search });
  function show(href, replace) {   // a slider on its way replaces the address, or every step would be one to go back
    const url = new URL(href, location.href);
    if (url.href === location.href) return;
    const inside = mounted(url);
    history[replace ? "replaceState" : "pushState"]({}, "", url);
    if (inside) publish(url); else window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
  }
  function patch(changes, replace) {
    const url = new URL(location.href);
    for (const [k, v] of Object.entries(changes)) if (v === "") url.searchParams.delete(k); else url.searchParams.set(k, v);
    show(url.href, replace);
  }
  window.addEventListener("popstate", (event) => {
    if (!mounted(location)) return;
    event.stopImmediatePropagation();   // the router would build the whole page again
    publish(location);
  }, true);
  const dataUrl = (d) => `/data/${encodeURIComponent(d.run)}`;
  const headUrl = (label, search) => `/r/${encodeURIComponent(page().run)}/head/${label}${search || ""}`;

  /* ---- canvas helpers */
  function fit(canvas, w, h) {
    const dpr = window.devicePixelRatio || 1;
    canvas.width = Math.round(w * dpr); canvas.height = Math.round(h * dpr);   // this also clears it
    canvas.style.width = `${w}px`; canvas.style.height = `${h}px`;
    const c = canvas.getContext("2d");
    c.setTransform(dpr, 0, 0, dpr, 0, 0); c.textBaseline = "middle";
    return c;
  }
  function hatch(c, x, y, w, h) {
    c.save(); c.beginPath(); c.rect(x, y, w, h); c.clip();
    c.fillStyle = css("--void"); c.fillRect(x, y, w, h);
    c.strokeStyle = css("--hatch"); c.lineWidth = 1; c.beginPath();
    for (let d = -h; d < w; d += 6) { c.moveTo(x + d, y + h); c.lineTo(x + d + h, y); }
    c.stroke(); c.restore();
  }
  const turned = (c, text, x, y, angle) => { c.save(); c.translate(x, y); c.rotate(-angle); c.fillText(text, 0, 0); c.restore(); };
  const font = (px, mono) => `${px}px ${css(mono ? "--mono" : "--sans")}`;
  function tip(event, text) {
    const box = $("tip") || document.body.appendChild(make("div", { id: "tip" }));
    box.hidden = !text;
    box.textContent = text || "";
    const { clientX: x, clientY: y } = event, h = box.offsetHeight;
    box.style.left = `${clamp(x + 14, 4, innerWidth - box.offsetWidth - 4)}px`;
    box.style.top = `${y + h + 24 > innerHeight ? y - h - 10 : y + 16}px`;
  }

  /* ---- Atlas: layer x head */
  const A = { data: null, sel: "", hover: "", cells: [] }, H = { data: null };   // H: the head of the address
  const bright = ([r, g, b]) => 0.3 * r + 0.59 * g + 0.11 * b > 140;
  function drawAtlas() {
    const canvas = $("atlas-canvas"), d = A.data;
    if (!canvas || !d) return;
    const left = 46, top = 40, gap = d.layers.some((l) => l.group > 1) ? 4 : 0;
    const room = canvas.parentElement.clientWidth - left - 2;
    const groups = Math.max(...d.layers.map((l) => Math.ceil(l.heads / Math.max(l.group, 1))));
    const w = clamp(Math.floor((room - gap * (groups - 1)) / d.n_heads), 5, 80), h = clamp(w * 0.72, 7, 42);
    const colour = scale(d.signed ? "--diverge" : "--ramp"), unit = (v) => (v - d.low) / (d.high - d.low || 1);
    const c = fit(canvas, left + d.n_heads * w + gap * (groups - 1) + 2, top + d.layers.length * h + 2);
    const x = (row, i) => left + i * w + (gap ? Math.floor(i / Math.max(row.group, 1)) * gap : 0);
    c.fillStyle = css("--faint"); c.font = font(11); c.textAlign = "center"; c.fillText("head", left + (d.n_heads * w) / 2, 9);
    const every = Math.ceil(20 / w), widest = d.layers.find((l) => l.heads === d.n_heads) || { group: 1 };
    for (let i = 0; i < d.n_heads; i += every) c.fillText(i, x(widest, i) + w / 2, 28);
    turned(c, "layer", 8, top + (d.layers.length * h) / 2, Math.PI / 2);
    const step = Math.ceil(13 / h);
    A.cells = [];
    d.layers.forEach((row, r) => {
      const y = top + r * h;
      c.fillStyle = css("--faint"); c.textAlign = "right"; c.font = font(11);
      if (r % step === 0) c.fillText(row.layer, left - 8, y + h / 2);
      if (row.heads < d.n_heads) hatch(c, x(row, row.heads), y, x(widest, d.n_heads - 1) + w - x(row, row.heads), h - 1);
      for (let i = 0; i < row.heads; i++) {
        const cell = d.cells[row.start + i], v = cell.value, shade = colour(unit(v || 0));
        A.cells.push({ ...cell, x: x(row, i), y, w, h });
        if (v === null) { hatch(c, x(row, i), y, w - 1, h - 1); continue; }
        c.fillStyle = paint(shade); c.fillRect(x(row, i), y, w - 1, h - 1);
        if (w < 38 || h < 22) continue;
        c.fillStyle = bright(shade) ? "#1b2430" : "#ffffff"; c.textAlign = "center";
        c.fillText(number(v), x(row, i) + w / 2 - 0.5, y + h / 2);
      }
    });
    for (const [label, line, width] of [[A.hover, "--ink", 1.5], [A.sel, "--orange", 3]]) {
      const cell = A.cells.find((k) => k.label === label);
      c.strokeStyle = css(line); c.lineWidth = width;
      if (cell) c.strokeRect(cell.x - 0.5, cell.y - 0.5, cell.w, cell.h);
    }
  }
  const atlasAt = (e) => A.cells.find((k) => e.offsetX >= k.x && e.offsetX < k.x + k.w && e.offsetY >= k.y && e.offsetY < k.y + k.h);
  const atlasEvents = {
    onmousemove: (e) => {
      const k = atlasAt(e);
      A.hover = k ? k.label : ""; drawAtlas();
      tip(e, k && `${k.label}   ${k.text}\n${k.more}`);
    },
    onmouseleave: (e) => { A.hover = ""; tip(e, ""); drawAtlas(); },
    onclick: (e) => { const k = atlasAt(e); if (k) patch({ sel: k.label === A.sel ? "" : k.label }); },
    ondblclick: (e) => { const k = atlasAt(e); if (k) { tip(e, ""); show(headUrl(k.label, carried("head", location.href))); } },
  };

  /* ---- Head: the pattern; codes are bytes, round(255 p^(1/3)) */
  const P = { data: null, codes: null, tokens: null, hover: null, lock: null };
  const prob = (code) => Math.pow(code / 255, 3);
  function pooled(codes, rows, cols, f) {
    const R = Math.ceil(rows / f), C = Math.ceil(cols / f), out = new Uint8Array(R * C);
    for (let q = 0, i = 0; q < rows; q++) for (let k = 0; k < cols; k++, i++) {
      const at = Math.floor(q / f) * C + Math.floor(k / f);
      if (codes[i] > out[at]) out[at] = codes[i];
    }
    return { codes: out, rows: R, cols: C };
  }
  function bake(side) {   // codes -> coloured picture in the page's own size, once per change
    const d = P.data, f = Math.max(1, Math.ceil(Math.max(P.rows, P.cols) / side)), each = f * P.factor;
    const m = f > 1 ? pooled(P.codes, P.rows, P.cols, f) : P, hidden = new Uint8Array(m.cols);
    if (P.mask) d.sinks.forEach((k) => { hidden[Math.floor(k / each)] = 1; });
    let high = 0;
    for (let i = 0; i < m.codes.length; i++) if (m.codes[i] > high && !hidden[i % m.cols]) high = m.codes[i];
    const top = prob(high) || 1, colour = scale("--ramp"), ramp = RAMPS[P.ramp], empty = [...rgb(css("--void")), 255];
    const lut = Array.from({ length: 256 }, (_, code) => [...colour(ramp[0](Math.min(1, prob(code) / top))), 255]);
    const picture = make("canvas", { width: m.cols, height: m.rows }), c = picture.getContext("2d");
    const image = c.createImageData(m.cols, m.rows);
    m.codes.forEach((code, i) => image.data.set(d.causal && i % m.cols > i / m.cols ? empty : lut[code], 4 * i));
    c.putImageData(image, 0, 0);
    P.picture = picture; P.hidden = hidden;
    legend("pattern-legend", colour, [0, 0.25, 0.5, 0.75, 1].map((t) => number(t === 0 && P.ramp !== "log" ? 0 : ramp[1](t) * top)),
      `probability, ${P.ramp} ramp${each > 1 ? `; each cell is the largest of ${each} × ${each} (pooled by max)` : ""}`);
    $("pattern-hidden").textContent = P.mask ? d.hidden_text : "";
  }
  function drawPattern() {
    const canvas = $("pattern-canvas");
    if (!canvas || !P.codes) return;
    const few = Math.max(P.rows, P.cols) <= 44, left = few ? 92 : 58, top = few ? 92 : 50;   // room for words
    const size = clamp(Math.min(canvas.parentElement.clientWidth - left - 10, innerHeight - 330), 380, 640);   // whole on one screen
    if (!P.picture || P.side !== size) { P.side = size; bake(size * (window.devicePixelRatio || 1)); }
    const w = size, h = size * (P.rows / P.cols), c = fit(canvas, left + w + 10, top + h + 7);
    P.box = { left, top, w, h };
    c.imageSmoothingEnabled = false; c.drawImage(P.picture, left, top, w, h);
    P.hidden.forEach((on, k) => { if (on) hatch(c, left + (k * w) / P.hidden.length, top, Math.max(3, w / P.hidden.length), h); });
    c.strokeStyle = css("--line"); c.lineWidth = 1; c.strokeRect(left - 0.5, top - 0.5, w + 1, h + 1);
    axes(c, few);
    [[P.lock, "--orange", 2], [P.hover && P.hover.q, "--ink", 1]].forEach(([q, colour, width]) => {
      if (q === null || q >= P.rows * P.factor) return;
      const step = h / P.rows, y = top + Math.floor(q / P.factor) * step, mid = y + step / 2;
      c.strokeStyle = c.fillStyle = css(colour); c.lineWidth = width;
      if (step >= 7) { c.strokeRect(left - 1, y, w + 2, step); return; }
      for (const [x, to] of [[left, -8], [left + w, 8]]) {   // thin rows are pointed at, not covered
        c.beginPath(); c.moveTo(x, mid); c.lineTo(x + to, mid - 5); c.lineTo(x + to, mid + 5); c.fill();
      }
    });
    c.strokeStyle = css("--faint"); c.lineWidth = 1;
    if (P.hover && P.hover.k !== null) c.strokeRect(left + (Math.floor(P.hover.k / P.factor) * w) / P.cols, top - 1, Math.max(2, w / P.cols), h + 2);
  }
  function axes(c, few) {
    const { left, top, w, h } = P.box, names = P.tokens ? P.tokens.text : [];
    c.fillStyle = css("--faint"); c.font = font(11.5); c.textAlign = "center";
    c.fillText("key: looked at →", left + w / 2, 8);
    turned(c, "← query: looks from", 8, top + h / 2, Math.PI / 2);
    const n = Math.max(P.rows, P.cols) * P.factor;
    const step = few ? 1 : [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((s) => n / s <= 11) || 10000;
    c.font = few ? font(10, true) : font(11);
    const label = (i) => (few && names[i] !== undefined ? names[i].slice(0, 10) : String(i));
    c.textAlign = "right";
    for (let q = 0; q < P.rows * P.factor; q += step) c.fillText(label(q), left - (few ? 6 : 12), top + ((q / P.factor + 0.5) * h) / P.rows);
    for (let k = 0; k < P.cols * P.factor; k += step) {
      const x = left + ((k / P.factor + 0.5) * w) / P.cols;
      c.textAlign = few ? "left" : "center";
      if (few) turned(c, label(k), x, top - 6, Math.PI / 3); else c.fillText(label(k), x, top - 11);
    }
  }
  const cellAt = (e) => {
    const k = Math.floor(((e.offsetX - P.box.left) / P.box.w) * P.cols * P.factor);
    const q = Math.floor(((e.offsetY - P.box.top) / P.box.h) * P.rows * P.factor);
    return k >= 0 && q >= 0 && k < P.data.n_keys && q < P.tokens.text.length ? { q, k } : null;
  };
  const patternEvents = {
    onmousemove: (e) => {
      const at = cellAt(e), p = at && prob(P.codes[Math.floor(at.q / P.factor) * P.cols + Math.floor(at.k / P.factor)]);
      const seen = at && !(P.data.causal && at.k > at.q);
      hover(at);
      tip(e, at && `query ${at.q} ${word(at.q)} looks at\nkey ${at.k} ${word(at.k)}: ${seen ? number(p) : "not visible (causal)"}`);
    },
    onmouseleave: (e) => { tip(e, ""); hover(null); },
    onclick: (e) => { const at = cellAt(e); if (at) lock(at.q); },
  };
  const word = (i) => (P.tokens && P.tokens.text[i] !== undefined ? `“${P.tokens.text[i]}”` : "");
  const lock = (q) => patch({ query: q === P.lock ? "" : q });

  /* ---- Head: token strip; one span per token, built here, far ones only when scrolled to */
  const S = { spans: [], painted: [], serial: 0, watch: null };
  const CHUNK = 256, FLOW = 2048;
  function buildStrip() {
    const host = $("strip"), t = P.tokens;
    host.replaceChildren(); Object.assign(S, { spans: [], painted: [] });
    if (S.watch) S.watch.disconnect();
    const span = (i) => {
      const e = S.spans[i] = make("span", { textContent: t.text[i], className: t.role[i] });
      Object.assign(e.dataset, i % 10 ? { i } : { i, n: i });
      return e;
    };
    if (t.text.length <= FLOW) { t.text.forEach((_, i) => host.appendChild(span(i))); return; }
    S.watch = new IntersectionObserver((seen) => seen.forEach((s) => {
      const box = s.target, from = Number(box.dataset.from), to = Math.min(from + CHUNK, t.text.length);
      if (s.isIntersecting && !box.firstChild) { for (let i = from; i < to; i++) box.append(span(i)); preview(S.now); }
      if (s.isIntersecting || !box.firstChild) return;
      box.style.minHeight = `${box.offsetHeight}px`; box.replaceChildren();
      for (let i = from; i < to; i++) delete S.spans[i];
    }), { root: host, rootMargin: "600px" });
    const boxes = t.text.filter((_, i) => i % CHUNK === 0).map(() => host.appendChild(make("div")));
    for (let i = 0; i < CHUNK; i++) boxes[0].append(span(i));   // its height is the guess for the others
    const guess = `${boxes[0].offsetHeight}px`;
    boxes.forEach((box, i) => { box.dataset.from = i * CHUNK; box.style.minHeight = guess; S.watch.observe(box); });
  }
  async function crossing(q) {   // codes of row q and of column q
    if (P.factor === 1) return [P.codes.subarray(q * P.cols, (q + 1) * P.cols), Uint8Array.from({ length: P.rows }, (_, r) => P.codes[r * P.cols + q])];
    const d = P.data, reply = await fetch(`${dataUrl(d)}/cross/${d.head}/${d.prompt}/${q}`), both = new Uint8Array(await reply.arrayBuffer());
    return [both.subarray(0, d.n_keys), both.subarray(d.n_keys)];
  }
  async function preview(q) {
    if (!P.codes) { $("strip-readout").textContent = "Without the pattern nothing is known of single tokens."; return; }
    const at = q ?? P.lock, serial = ++S.serial;
    S.now = q;
    S.painted.splice(0).forEach((e) => { e.removeAttribute("style"); e.classList.remove("from"); });
    $("strip-readout").textContent = at === null ? "Hover a token: orange is where it looks, grey bars are who looks at it. Click to lock."
      : `${at === P.lock ? "locked on" : "from"} query ${at} ${word(at)}`;
    if (at === null || at >= P.tokens.text.length) return;
    const [row, column] = await crossing(at);
    if (serial !== S.serial) return;   // the mouse has moved on
    const [r, g, b] = rgb(css("--orange")), [u, v, w] = rgb(css("--grey"));
    const strength = (code) => clamp(1 - Math.log(prob(code)) / Math.log(1e-3), 0, 1);
    S.spans.forEach((e, i) => {
      const out = row[i] ? strength(row[i]) : 0, back = column[i] ? strength(column[i]) : 0;
      if (out > 0.02) e.style.background = `rgba(${r},${g},${b},${(0.85 * out).toFixed(2)})`;
      if (out > 0.75) e.style.color = "#1b2430";
      if (back > 0.02) e.style.boxShadow = `inset 0 -3px rgba(${u},${v},${w},${back.toFixed(2)})`;
      if (i === at) e.classList.add("from");
      if (out > 0.02 || back > 0.02 || i === at) S.painted.push(e);
    });
  }
  const hover = (at) => { P.hover = at; drawPattern(); preview(at && at.q); };
  const stripEvents = {
    onmouseover: (e) => { if (e.target.dataset.i) hover({ q: Number(e.target.dataset.i), k: null }); },
    onmouseleave: () => hover(null),
    onclick: (e) => { if (e.target.dataset.i) lock(Number(e.target.dataset.i)); },
  };

  async function loadHead(d) {
    const prompt = `${d.run}/${d.prompt}`, want = `${d.head}/${prompt}`;
    if (P.have === want && P.strip === $("strip")) return true;
    P.want = want;
    const [reply, tokens] = await Promise.all([d.problem ? null : fetch(`${dataUrl(d)}/pattern/${d.head}/${d.prompt}`),
      fetch(`${dataUrl(d)}/tokens/${d.prompt}`).then((r) => r.json())]);
    const codes = reply && new Uint8Array(await reply.arrayBuffer()), same = P.strip === $("strip") && P.prompt === prompt;
    if (P.want !== want || !$("strip")) return false;
    const [rows, cols, factor] = ["X-Rows", "X-Columns", "X-Pooled"].map((name) => reply && Number(reply.headers.get(name)));
    Object.assign(P, { data: d, codes, tokens, rows, cols, factor, prompt, strip: $("strip"), have: want });
    if (!same) buildStrip();
    return true;
  }
  function fill(id, rows, pick) {
    $(id).replaceChildren(...rows.map((cells) => make("tr", { onclick: pick && (() => pick(cells)) },
      ...cells.map((text) => make("td", { textContent: text })))));
  }

  /* ---- what Dash calls */
  const query = (url) => new URL(url, location.href).searchParams;
  const SLIDERS = ["eps", "cos", "life", "logit"], NUMBERS = ["top", "prompt", ...SLIDERS];
  const typed = (name, text) => (NUMBERS.includes(name) && text !== undefined ? Number(text) : text);
  const written = {};   // what a control last wrote into the address, or read from it
  const usual = (name) => ({ ramp: "sqrt", top: 20, prompt: 0 })[name] ?? typed(name, page()[name]);   // value of an absent parameter
  const current = (name, url) => {
    const text = query(url).get(name);
    return text === null ? usual(name) : typed(name, text);
  };
  const label = (url) => url.split("?")[0].split("/")[4];   // of a path
  /* what the pages of one run hand on to each other */
  const CARRIED = { atlas: ["sel", "mask"], sinks: ["prompt", "sel", "mask"], head: ["prompt", "mask"] };
  function carried(to, url) {
    const q = query(url), all = new URLSearchParams();
    for (const name of CARRIED[to] || []) if (q.get(name)) all.set(name, q.get(name));
    if (to !== "head" && page().kind === "head") all.set("sel", label(url));
    return all.size ? `?${all}` : "";
  }
  const toggleMask = () => patch({ mask: query(location.href).get("mask") === "1" ? "" : 1 });
  NS.wb = {
    theme: (clicks) => {
      if (clicks) root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
      if (clicks) localStorage.setItem("workbench-theme", root.dataset.theme);
      return root.dataset.theme;
    },
    copy: () => navigator.clipboard.writeText(location.href).then(() => "Copied", () => "Copy from the address bar"),
    control: (value, id) => {
      if (value === null || value === undefined || value === current(id.name, location.href)) return;
      const text = SLIDERS.includes(id.name) ? Number(value.toFixed(6)) : value;
      written[id.name] = text;
      // A position belongs to its prompt.
      const gone = id.name === "prompt" ? { query: "", ...(isFinite(current("at", location.href)) ? { at: "" } : {}) } : {};
      patch({ [id.name]: text === usual(id.name) ? "" : text, ...gone }, SLIDERS.includes(id.name));
    },
    sync: (url, id) => {   // a slider that moves faster than the page answers is not set back to where it was
      const value = current(id.name, url), late = url !== location.pathname + location.search;
      if (SLIDERS.includes(id.name) && (late || written[id.name] === value)) return stay();
      return (written[id.name] = value);
    },
    mask: (clicks, url) => {
      if ((NS.callback_context.triggered_id || "").endsWith("-mask")) toggleMask();
      return query(url).get("mask") === "1" || (clicks && query(location.href).get("mask") === "1") ? "quiet on" : "quiet";
    },
    tabs: (url) => {
      const q = query(url), own = page().kind === "head" ? label(url) : q.get("sel") || page().head;
      return NS.callback_context.outputs_list.map(({ id }) => {
        const to = id.split("-tab-")[1].split("-")[0];
        return to === "head" ? headUrl(own, carried(to, url)) : `/r/${encodeURIComponent(page().run)}/${to}${carried(to, url)}`;
      });
    },
    part: (url, id, old) => {   // of an address what one part of the page depends on
      const q = query(url), kept = new URLSearchParams();
      for (const name of id.of.split(" ")) if (q.get(name) !== null) kept.set(name, q.get(name));
      const now = url.split("?")[0] + (kept.size ? `?${kept}` : "");
      return now === old ? stay() : now;
    },
    said: (value) => number(value),
    poll: (state) => { if (state && state.running) setTimeout(() => NS.set_props("ablate-tick", { data: Date.now() }), 400); },
    links: (url) => {
      document.querySelectorAll("a[data-table]").forEach((a) => { a.href = `${dataUrl(page())}/sinks/${a.dataset.table}.csv${new URL(url, location.href).search}`; });
      return Date.now();
    },
    spot: (click) => { if (click && isFinite(click.points[0].customdata)) patch({ at: click.points[0].customdata }); },
    fill: (rows, id) => { fill(id, rows || [], null); return ""; },
    atlas: (data, url) => {
      if (!data) return stay();
      A.data = data; A.sel = query(url).get("sel") || "";
      Object.assign($("atlas-canvas"), atlasEvents); drawAtlas();
      legend("atlas-legend", scale(data.signed ? "--diverge" : "--ramp"), [data.low, (data.low + data.high) / 2, data.high].map(number), data.words);
      return Date.now();
    },
    rows: (url) => {   // of a list of heads, or of sinks: "prompt.position"
      const q = query(url);
      return { ids: [page().kind === "sinks" ? `${q.get("prompt") || 0}.${q.get("at")}` : q.get("sel")].filter(Boolean) };
    },
    cell: (clicked) => {
      if (!clicked || !clicked.rowId) return;
      const [prompt, at] = clicked.rowId.split(".");
      patch(page().kind === "sinks" ? { prompt: prompt === "0" ? "" : prompt, at } : { sel: clicked.rowId });
    },
    point: (click) => { if (click && click.points[0].customdata) patch({ sel: click.points[0].customdata }); },
    square: (click) => {   // of a heat map Dash hands on no customdata
      const { x, y, z } = (click && click.points[0]) || {};
      if (z !== undefined && z !== null) patch({ sel: `${page().head[0]}${y}H${x}` });
    },
    head: async (data, url) => {
      if (!data || data.head !== label(url) || data.prompt !== current("prompt", url)) return stay();
      H.data = data;
      const q = query(url), locked = q.get("query");
      fill("head-metrics", data.metrics, null);
      $("pattern-hidden").textContent = data.problem;
      $("page").classList.toggle("bare", Boolean(data.problem));   // what cannot be drawn is taken away
      if (!(await loadHead(data))) return stay();
      Object.assign(P, { ramp: q.get("ramp") || "sqrt", mask: q.get("mask") === "1", lock: locked === null ? null : Number(locked), picture: null });
      Object.assign($("pattern-canvas"), patternEvents); Object.assign($("strip"), stripEvents);
      hover(null);
      for (const kind of ["csv", "svg"]) $(`save-${kind}`).href = `${dataUrl(data)}/pattern/${data.head}/${data.prompt}.${kind}?ramp=${P.ramp}${P.mask ? "&mask=1" : ""}`;
      return Date.now();
    },
    cross: (data) => {
      for (const side of ["out", "in"]) fill(`cross-${side}`, data ? data[side] : [], (cells) => patch({ query: cells[0] }));
      return Date.now();
    },
    png: (clicks) => {
      if (clicks && P.codes) $("pattern-canvas").toBlob((blob) => {
        const d = P.data, a = make("a", { href: URL.createObjectURL(blob), download: `${d.run}-${d.head}-p${d.prompt}.png` });
        a.click(); setTimeout(() => URL.revokeObjectURL(a.href), 1000);
      });
    },
    step: () => move((NS.callback_context.triggered_id || "").replace("go-", "")),
  };

  window.workbench = { $, css, clamp, stay, number, scale, rgb, paint, RAMPS, legend, make, patch, query, fit, turned, font, tip, prob };   // for the other scripts
  (window.dashAgGridFunctions = window.dashAgGridFunctions || {}).wbNumber = number;
  /* ---- keyboard */
  function move(way) {
    const now = label(location.pathname), layers = H.data.layers;   // from the address: keys may outrun the drawing
    const [layer, head] = now.slice(1).split("H").map(Number), row = layers.findIndex((l) => l[0] === layer);
    const to = { up: [row - 1, head], down: [row + 1, head], left: [row, head - 1], right: [row, head + 1] }[way];
    const found = to && layers[to[0]];
    if (found && to[1] >= 0) show(headUrl(`${now[0]}${found[0]}H${Math.min(to[1], found[1] - 1)}`, location.search));
  }
  const turn = (by) => {
    const all = H.data.prompts, next = all[all.indexOf(current("prompt", location.href)) + by];
    if (next !== undefined) patch({ prompt: next || "", query: "" });
  };
  const KEYS = {
    j: () => move("down"), k: () => move("up"), h: () => move("left"), l: () => move("right"),
    "[": () => turn(-1), "]": () => turn(1), Escape: () => patch({ query: "" }),
  };
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, [role=combobox], [role=listbox], .ag-root")) return;
    if (e.key === "m" && ["atlas", "sinks", "head"].includes(page().kind)) toggleMask();
    if (page().kind === "head" && H.data && KEYS[e.key]) { KEYS[e.key](); e.preventDefault(); }
    if (page().kind === "atlas" && e.key === "Enter" && A.sel && e.target === document.body) show(headUrl(A.sel, carried("head", location.href)));
  });
  window.addEventListener("resize", () => { drawAtlas(); drawPattern(); });
  root.dataset.theme = localStorage.getItem("workbench-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
})();
