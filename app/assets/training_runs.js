/* Training page: one small panel per run of the stack, and the phases of the chosen one. */
(() => {
  "use strict";
  const W = () => window.workbench, $ = (id) => document.getElementById(id);
  const LAB = (window.workbenchLab = window.workbenchLab || { parts: [] });
  const TALL = 44;   // pixels of a curve
  let cells = [], marks = [], lines = [], drawn = "";

  const colour = (m, fate) => { const i = m.words.findIndex((w) => w.word === fate); return `fate-${i < 0 ? "none" : i}`; };

  function span(m) {   // lowest and highest value of all runs, on the scale that is drawn
    const flat = m.runs.flatMap((run) => run.values).filter((v) => v !== null), put = m.log ? Math.log10 : (v) => v;
    const low = Math.min(...flat), high = Math.max(...flat);
    return { put, low: m.log ? low : Math.min(0, low), high: Math.max(high, m.log ? high : 0) };
  }
  const places = (T) => { const last = T.data.x[T.data.x.length - 1] || 1; return T.data.x.map((v) => v / last); };
  function line(canvas, values, x, { put, low, high }) {   // with gaps where nothing was logged
    const wide = canvas.parentElement.clientWidth, c = W().fit(canvas, wide, TALL), room = put(high) - put(low) || 1;
    let open = false;
    c.strokeStyle = getComputedStyle(canvas).color; c.lineWidth = 1.6; c.lineJoin = "round"; c.beginPath();
    values.forEach((v, i) => {
      const px = x[i] * wide, py = v === null ? 0 : TALL - 3 - ((TALL - 6) * (put(v) - put(low))) / room;
      if (v !== null) { if (open) c.lineTo(px, py); else c.moveTo(px, py); }
      open = v !== null;
    });
    c.stroke();
  }
  function panel(T, m, run, scale) {
    const { make, number } = W(), x = places(T), canvas = make("canvas", {}), cursor = make("div", { className: "at" });
    const value = make("span"), here = run.run === T.data.state.run, beside = run.run === T.data.state.beside;
    const top = make("div", {}, make("strong", { textContent: run.label }), value);
    const open = () => { W().patch({ run: run.run, beside: beside ? "" : W().query(location.href).get("beside") || "" }); };
    const said = m.words.find((w) => w.word === run.fate), now = () => number(run.values[T.at]);
    const more = (e) => W().tip(e, `${run.label}${said ? `: ${said.word}, ${said.about}` : ""}\n${m.curve} ${now()} ${LAB.unit(m.units)} at step ${T.data.steps[T.at].toLocaleString("en-US")}`);
    const box = make("button", { className: `multiple ${colour(m, run.fate)}${here ? " here" : ""}${beside ? " beside" : ""}`, onclick: open, onmousemove: more, onmouseleave: (e) => W().tip(e, "") },
      top, make("div", { className: "line" }, canvas, cursor));
    box.setAttribute("aria-label", `open ${run.label}${run.fate ? `, ${run.fate}` : ""}`);
    cells.push(() => { cursor.style.left = `${100 * x[T.at]}%`; value.textContent = now(); });
    lines.push(() => line(canvas, run.values, x, scale));
    return box;
  }
  function multiples(T) {
    const { make, number } = W(), m = T.data.multiples, scale = m.runs.length ? span(m) : null;
    cells = []; lines = []; drawn = "";
    $("lab-multiples").closest(".box").hidden = !m.runs.length;
    const letters = Math.max(0, ...m.runs.map((run) => run.label.length));   // a panel is as wide as the longest name needs
    $("lab-multiples").style.setProperty("--wide", `${W().clamp(7 * letters + 56, 136, 260)}px`);
    $("lab-multiples").replaceChildren(...m.runs.map((run) => panel(T, m, run, scale)));
    const count = (word) => m.runs.filter((run) => run.fate === word).length;
    $("lab-fates").replaceChildren(...m.words.map((w) => make("span", { className: colour(m, w.word), title: w.about, textContent: `${w.word} ${count(w.word)}` })));
    $("lab-multiples-scale").textContent = scale ? `${m.curve}${m.head && `, head ${m.head}`}: ${m.about}; from ${number(scale.low)} to ${number(scale.high)} ${LAB.unit(m.units)}${m.log ? ", log scale" : ""}. `
      + m.words.map((w) => `${w.word}: ${w.about}`).join("; ") : "";
  }
  function phases(T) {
    const { make } = W(), all = T.data.phases;
    marks = [];
    $("lab-phases").hidden = !all.length;
    $("lab-phases").replaceChildren(...all.map((phase, i) => {
      const mark = make("button", { className: "phase", title: phase.about, onclick: () => LAB.go(phase.at) },
        make("b", { textContent: i + 1 }), ` ${phase.word}, step ${phase.step.toLocaleString("en-US")}`);
      const end = i + 1 < all.length ? all[i + 1].at : Infinity;
      marks.push(() => mark.classList.toggle("on", T.at >= phase.at && T.at < end));
      return mark;
    }));
  }
  LAB.parts.push({
    show: (T) => { multiples(T); phases(T); },
    draw: () => {
      const now = `${document.documentElement.dataset.theme} ${$("lab-multiples").clientWidth}`;
      if (now !== drawn) lines.forEach((again) => again());   // another theme, another width
      drawn = now;
      [...cells, ...marks].forEach((set) => set());
    },
  });
})();
