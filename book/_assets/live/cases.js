// Three cases of the study in 3D. The library and a case are loaded when they are asked for, by the
// button or by a link to a view; one state, kept in the address, decides what is shown.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { address, controls, scripts, volumes } = dcd;
  const { element } = controls;
  const here = document.currentScript.src, file = name => new URL(`../${name}`, here).href;
  const AXES = { i: "sagittal", j: "coronal", k: "axial" };
  const RANKS = ["worst", "median", "best"];
  const CHANNELS = { dwi: "DWI", adc: "ADC", flair: "FLAIR" };
  const NETWORKS = { teacher: "teacher", undistilled: "undistilled student", DCD: "DCD student" };
  const OVERLAYS = {
    none: "nothing", truth: "truth", ...NETWORKS,
    ...Object.fromEntries(Object.entries(NETWORKS).map(([name, words]) => [`${name}-errors`, `errors of the ${words}`])),
  };
  const WORDS = {
    marked: "lesion", found: "lesion, found", missed: "lesion, missed", added: "no lesion, but predicted",
  };
  const START = { case: "median", image: "dwi", overlay: "DCD-errors", view: "all", turn: 110 };
  const meaning = overlay => ({ mask: overlay.replace("-errors", ""), errors: overlay.endsWith("-errors") });

  const { oneOf, whole } = address;
  const FIELDS = {
    case: oneOf(RANKS), image: oneOf(Object.keys(CHANNELS)), overlay: oneOf(Object.keys(OVERLAYS)),
    view: oneOf(Object.keys(volumes.VIEWS)), turn: whole(0, 359),
    ...Object.fromEntries(Object.keys(AXES).map(name => [name, whole(0, 255)])),
  };

  async function loaded(rank) {
    await scripts.load(file(`cases/${rank}.js`), "the case");
    return globalThis.dcdCases[rank];
  }

  // The largest of the lesions that the first endpoint looks at.
  const first = one => one.lesions.find(lesion => lesion.volume_ml < one.small_ml).at;
  const voxel = state => Object.keys(AXES).map(name => state[name]);
  const named = at => Object.fromEntries(Object.keys(AXES).map((name, i) => [name, at[i]]));

  function build(root, failed) {
    let state, one, viewer, shown = {}, run = 0;
    const canvas = element("canvas", {
      tabindex: 0, role: "application", "aria-label": "Planes and 3D view of the case. Arrow keys move the crosshair "
        + "left, right, forward and back, Page up and Page down move it up and down; in the 3D view, arrow keys turn it.",
    });
    const legend = element("p", { class: "dcd-cases-legend" });
    const told = element("p", { class: "dcd-live-told", "aria-live": "polite" });
    const table = element("div", { class: "dcd-live-scroll", tabindex: 0, role: "region", "aria-label": "Lesions of the case" });
    const pairs = words => Object.entries(words);
    const choose = {
      case: controls.select("dcd-case", RANKS, rank => change({ case: rank })),
      image: controls.select("dcd-image", pairs(CHANNELS), name => change({ image: name })),
      overlay: controls.select("dcd-overlay", pairs(OVERLAYS), name => change({ overlay: name })),
      view: controls.select("dcd-view", Object.keys(volumes.VIEWS), name => change({ view: name })),
    };
    const sliders = pairs(AXES).map(([name, plane]) => {
      const control = controls.slider(`dcd-${plane}`, [0, 255, 1], value => change({ [name]: value }));
      return { name, plane, control, shown: element("output", { for: control.id }) };
    });
    const turning = controls.slider("dcd-turn", [0, 359, 1], value => change({ turn: value }));
    const row = (...children) => element("div", { class: "dcd-live-row" }, ...children);
    const part = element("div", { class: "dcd-cases-viewer" },
      row(...pairs(choose).map(([name, control]) => controls.field(name, control))),
      element("div", { class: "dcd-cases-canvas" }, canvas), legend,
      row(...sliders.map(({ plane, control, shown: value }) =>
        element("label", { class: "dcd-live-field", for: control.id }, element("span", {}, `${plane} `, value), control)),
      controls.field("turn in 3D", turning)),
      told, table);
    root.append(part);

    const asked = () => ({ ...START, ...address.read(FIELDS) });

    function change(values) {
      if (values.case && values.case !== state.case) for (const name of Object.keys(AXES)) delete state[name];
      Object.assign(state, values);
      return draw();
    }

    function tell() {
      const value = viewer.value(voxel(state)), { names } = one.masks;
      const has = names.map((name, bit) => `${NETWORKS[name] ?? name} ${value & (1 << bit) ? "lesion" : "no lesion"}`);
      told.textContent = `Case ${one.id}, the ${one.rank}: number ${one.place} of ${one.of}. `
        + `Sagittal slice ${state.i}, coronal ${state.j}, axial ${state.k}. At the crosshair: ${has.join(", ")}.`;
    }

    function key() {
      const overlay = meaning(state.overlay);
      const kinds = overlay.mask === "none" ? [] : overlay.errors ? ["found", "missed", "added"] : ["marked"];
      legend.replaceChildren(...kinds.flatMap(kind => [
        element("span", { class: "dcd-key", style: `background: rgb(${volumes.COLOURS[kind]})` }), ` ${WORDS[kind]}  `]));
    }

    function list() {
      const cell = value => element("td", {}, value === 0 ? "0" : value.toFixed(2));
      const heads = ["lesion", "ml", ...Object.values(NETWORKS)].map(text => element("th", { scope: "col" }, text));
      const rows = one.lesions.map((lesion, i) => {
        const go = controls.button(String(i + 1), () => change(named(lesion.at)));
        go.setAttribute("aria-label", `Show lesion ${i + 1}`);
        return element("tr", {}, element("th", { scope: "row" }, go), element("td", {}, lesion.volume_ml.toFixed(2)),
          ...Object.keys(NETWORKS).map(name => cell(lesion.dice[name])));
      });
      table.replaceChildren(element("table", {},
        element("caption", {}, `Dice of each true lesion, the largest first. A number moves the crosshair into the lesion.`),
        element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
    }

    function mark() {
      one.lesions.forEach(({ at }, i) => table.querySelectorAll("tbody tr")[i]
        .classList.toggle("dcd-live-shown", at.every((value, axis) => value === voxel(state)[axis])));
    }

    // What the controls say after the crosshair has moved, by whatever hand.
    function settle() {
      for (const { name, control, shown: value } of sliders) control.value = value.value = state[name];
      for (const [name, control] of pairs(choose)) control.value = state[name];
      turning.value = state.turn;
      tell();
      mark();
      address.write(state);
    }

    async function draw() {
      const mine = ++run;
      root.dataset.state = "working";
      try {
        const next = await loaded(state.case);
        const other = shown.case !== state.case || shown.image !== state.image;
        const read = other && await viewer.read(next, state.image);
        if (mine !== run) return;
        if (other) viewer.show(read);
        one = next;
        if (shown.case !== state.case) list();
        shown = { ...state };
        sliders.forEach(({ name, control }, axis) => {
          control.max = one.size[axis] - 1;
          state[name] = Math.min(state[name] ?? first(one)[axis], one.size[axis] - 1);
        });
        const { view, turn } = state, overlay = meaning(state.overlay);
        viewer.draw({ overlay, names: one.masks.names, view, turn, voxel: voxel(state) });
        key();
        settle();
        root.dataset.state = "ok";
      } catch (error) {
        failed(error);
      }
    }

    async function open() {
      viewer = await volumes.open(canvas, {
        moved: at => { if (one) { Object.assign(state, named(at)); settle(); } },
        turned: angle => { if (one && angle !== state.turn) { state.turn = angle; settle(); } },
        failed,
      });
      dcd.cases = { viewer: viewer.viewer };
      state = asked();
      address.follow(FIELDS, () => { state = asked(); draw(); });
      await draw();
    }
    return { open, part };
  }

  function start() {
    const root = document.getElementById("dcd-cases"), problem = element("p", { role: "alert" });
    const button = controls.button("Open in 3D", open), row = element("div", { class: "dcd-live-row" }, button);
    let built;
    function failed(error) { // the still picture stays, and the reader learns why
      root.dataset.state = "failed";
      problem.textContent = `The 3D view could not start: ${error.message}.`;
      row.append(problem);
      built?.part.remove();
      built = undefined;
      button.disabled = false;
    }
    async function open() {
      button.disabled = true;
      root.dataset.state = "working";
      problem.remove();
      try {
        if (!volumes.supported()) throw new Error("this browser has no WebGL 2, or it is switched off");
        await scripts.load(file("niivue/niivue.js"), "the viewer");
        built = build(root, failed);
        await built.open();
      } catch (error) {
        failed(error);
      }
    }
    root.append(row);
    if (Object.keys(address.read(FIELDS)).length) open();
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
