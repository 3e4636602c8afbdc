// The toy: sliders that change a boundary, pictures of it, the share of the change that the loss
// sees, and curves of every measure along the slider that was moved last.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { address, boundary, controls, distance, slices, wavelet } = dcd;
  const { element, percent } = controls, { CHANGES, PUBLISHED, SIDE } = boundary;
  const POINTS = 24, NAMES = Object.keys(CHANGES);
  const WORDS = {
    move: ["moved", "voxels"], blur: ["blurred", "voxels"], thin: ["thinner", "voxels"],
    noise: ["noisy", "of the contrast"], brighten: ["brighter everywhere", "of the contrast"], shade: ["slowly shaded", "of the contrast"],
  };
  const MEASURES = {
    mse: "MSE", resolution: "detail loss, resolution", energy: "detail loss, energy", coarse: "coarse part", dice: "Dice",
  };
  const PICTURES = { teacher: "teacher", student: "student", difference: "student − teacher", seen: "what the loss sees" };
  const PARTS = { seen: "seen", coarse: "coarse, free", diagonal: "ddd, free" };
  const OPENING = {
    shape: "ball", wavelet: "db4", levels: 3, along: "move", ...Object.fromEntries(NAMES.map(name => [name, 0])), move: 1,
  };

  const fields = {
    shape: address.oneOf(Object.keys(boundary.SHAPES)), wavelet: address.oneOf(wavelet.NAMES),
    levels: address.whole(1, 3), along: address.oneOf(NAMES),
    ...Object.fromEntries(NAMES.map(name => [name, address.number(0, CHANGES[name][0])])),
  };
  const changes = state => Object.fromEntries(NAMES.map(name => [name, state[name]]));

  // A bar of the parts of a difference; it is pale where it shows a usual amount and not the present.
  function bar() {
    const parts = Object.keys(PARTS).map(name => element("span", { class: `dcd-part dcd-part-${name}` }));
    const part = element("div", { class: "dcd-parts", role: "img" }, ...parts);
    return {
      part,
      show(shares, pale) {
        Object.values(shares).forEach((share, i) => { parts[i].style.width = `${100 * share}%`; });
        part.classList.toggle("dcd-pale", pale);
        part.setAttribute("aria-label", Object.entries(PARTS).map(([name, text]) => `${text}: ${percent(shares[name])}`).join("; "));
      },
    };
  }

  function row(name, change) {
    const [most, step] = CHANGES[name], [text, unit] = WORDS[name], shown = element("output", { for: `dcd-${name}` });
    const control = controls.slider(`dcd-${name}`, [0, most, step], value => change({ [name]: value, along: name }));
    const shares = bar(), seen = element("span", { class: "dcd-toy-seen" });
    return {
      name, control, shown, shares, seen, unit,
      part: element("div", { class: "dcd-toy-row" },
        element("label", { for: control.id }, text, " ", shown), control, shares.part, seen),
    };
  }

  function build(root) {
    let state;
    const read = () => { state = { ...OPENING, ...address.read(fields) }; };
    const change = values => { Object.assign(state, values); address.write(state); draw(); };
    const rows = NAMES.map(name => row(name, change)), whole = bar();
    const canvases = Object.fromEntries(Object.entries(PICTURES).map(([name, text]) =>
      [name, element("canvas", { role: "img", "aria-label": `${text}, a slice through the middle` })]));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "dcd-curves");
    svg.setAttribute("role", "img");
    const values = Object.fromEntries(Object.keys(MEASURES).map(name => [name, element("td")]));
    const legend = element("table", { class: "dcd-toy-legend" }, element("tbody", {}, ...Object.entries(MEASURES).map(([name, text]) =>
      element("tr", {}, element("th", { scope: "row" }, element("span", { class: `dcd-key dcd-key-${name}` }), ` ${text}`), values[name]))));
    const told = element("p", { class: "dcd-live-told", "aria-live": "polite" });
    const choose = {
      shape: controls.select("dcd-shape", Object.keys(boundary.SHAPES), shape => change({ shape })),
      wavelet: controls.select("dcd-wavelet", wavelet.NAMES, name => change({ wavelet: name })),
      levels: controls.select("dcd-levels", [1, 2, 3], text => change({ levels: Number(text) })),
    };
    const keys = Object.entries(PARTS).map(([name, text]) =>
      element("span", {}, element("span", { class: `dcd-key dcd-part-${name}` }), ` ${text}`));
    root.replaceChildren(
      element("div", { class: "dcd-toy-grid" }, ...Object.entries(PICTURES).map(([name, text]) =>
        element("figure", {}, element("figcaption", {}, text), canvases[name]))),
      told,
      element("div", { class: "dcd-live-row dcd-toy-keys" }, element("span", {}, "Of each change, the loss sees:"), ...keys),
      ...rows.map(one => one.part),
      element("div", { class: "dcd-toy-row dcd-toy-whole" }, element("span", {}, "all together"),
        controls.button("no change", () => change(Object.fromEntries(NAMES.map(name => [name, 0])))), whole.part, element("span", { class: "dcd-toy-seen" })),
      element("div", { class: "dcd-toy-curves" }, svg, legend),
      element("div", { class: "dcd-live-row" }, ...Object.entries(choose).map(([name, control]) => controls.field(name, control)),
        controls.button("published setting", () => change({ wavelet: "db4", levels: 3 }))));

    function pictures(found) {
      const size = [SIDE, SIDE, SIDE], at = [SIDE / 2, SIDE / 2, SIDE / 2];
      const choice = { wavelet: state.wavelet, levels: state.levels, weighting: "resolution", bands: PUBLISHED };
      const seen = distance.seen(found.difference, SIDE, choice), top = Math.max(slices.top(seen), 1e-6);
      const shown = { ...found, seen };
      for (const [name, canvas] of Object.entries(canvases)) {
        const scale = name === "seen" ? top : 1;
        slices.draw(canvas, { size, values: shown[name] }, "axial", at, { colour: value => slices.signed(value / scale), crosshair: false });
      }
    }

    // A row shows its own change alone, at a usual amount where the slider is at zero.
    function alone({ name, shown, control, shares, seen, unit }) {
      const parts = boundary.shares(state, name, state[name] || CHANGES[name][2]);
      control.value = state[name];
      control.setAttribute("aria-valuetext", `${state[name]} ${unit}`);
      shown.value = state[name];
      shares.show(parts, state[name] === 0);
      seen.textContent = percent(parts.seen);
    }

    let curve = { key: "" };
    function along() {
      const key = JSON.stringify({ ...state, [state.along]: null });
      if (curve.key !== key) {
        const [most] = CHANGES[state.along], xs = Array.from({ length: POINTS + 1 }, (_, i) => most * i / POINTS);
        const found = xs.map(value => boundary.measure(state, { ...changes(state), [state.along]: value }));
        const lines = Object.fromEntries(Object.keys(MEASURES).map(name => [name, found.map(one => one[name])]));
        curve = { key, xs, lines };
      }
      const [text, unit] = WORDS[state.along];
      dcd.curves.chart(svg, curve.xs, curve.lines, state[state.along], `${text} (${unit})`);
      svg.setAttribute("aria-label", `Curves of ${Object.values(MEASURES).join(", ")}, over: ${text}`);
    }

    function tell(found) {
      const active = NAMES.filter(name => state[name] > 0).map(name => WORDS[name][0]);
      if (active.length === 0) told.textContent = "Nothing differs: every error is 0, and Dice is 1.";
      else told.textContent = `Student: ${active.join(", ")}. The published bands hold ${percent(found.parts.seen)} of the squared difference, the coarse band `
        + `${percent(found.parts.coarse)}, ddd ${percent(found.parts.diagonal)}. Dice is ${found.dice.toFixed(3)}.`;
    }

    function draw() {
      const found = boundary.measure(state, changes(state));
      for (const [name, control] of Object.entries(choose)) control.value = state[name];
      pictures(found);
      rows.forEach(alone);
      whole.show(found.parts, false);
      root.querySelector(".dcd-toy-whole .dcd-toy-seen").textContent = percent(found.parts.seen);
      for (const [name, cell] of Object.entries(values)) cell.textContent = found[name].toFixed(3);
      tell(found);
      along();
      for (const name of Object.keys(MEASURES)) root.dataset[name] = found[name];
      root.dataset.seen = found.parts.seen;
      root.dataset.state = "ready";
    }

    address.follow(fields, () => { read(); draw(); });
    new ResizeObserver(() => { if (curve.key) along(); }).observe(svg);
    read();
    draw();
  }

  function start() {
    const root = document.getElementById("dcd-toy");
    try {
      build(root);
    } catch (error) { // what the page says without the toy stays
      root.dataset.state = "failed";
      root.append(element("p", { role: "alert" }, `The toy could not start: ${error.message}.`));
      throw error;
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
