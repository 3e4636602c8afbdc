// The wavelet explorer: a periodized 3D wavelet transform in the page, and the controls around it.
// The transform is tested against PyWavelets (tests/test_book.py); volumes are cubes in C order (D, H, W).
(() => {
  "use strict";

  // --- the transform -----------------------------------------------------------------------------

  const LOW = {
    haar: [0.7071067811865476, 0.7071067811865476],
    db2: [-0.12940952255126037, 0.2241438680420134, 0.8365163037378079, 0.48296291314453416],
    db4: [-0.010597401785069032, 0.0328830116668852, 0.030841381835560764, -0.18703481171909309,
      -0.027983769416859854, 0.6308807679298589, 0.7148465705529157, 0.2303778133088965],
  };
  const BANDS = ["aaa", "aad", "ada", "add", "daa", "dad", "dda", "ddd"];
  const high = low => low.map((_, j) => (j % 2 ? 1 : -1) * low[low.length - 1 - j]);

  // One level along one axis of the first `size` voxels of every axis: low half, then high half.
  function axis(volume, side, size, step, low, inverse) {
    const taps = low.length, half = size / 2, filters = [low, high(low)];
    const steps = [side * side, side, 1].filter(other => other !== step);
    const line = new Float64Array(size);
    for (let a = 0; a < size; a++) for (let b = 0; b < size; b++) {
      const start = a * steps[0] + b * steps[1];
      line.fill(0);
      for (let part = 0; part < 2; part++) for (let k = 0; k < half; k++) {
        const at = part * half + k, coefficient = volume[start + at * step];
        for (let j = 0; j < taps; j++) {
          const from = (((taps / 2 + 2 * k - j) % size) + size) % size;
          if (inverse) line[from] += filters[part][j] * coefficient;
          else line[at] += filters[part][j] * volume[start + from * step];
        }
      }
      for (let i = 0; i < size; i++) volume[start + i * step] = line[i];
    }
  }

  // Packed pyramid: each level puts its eight bands into the octants of the cube of `aaa` above it.
  function analyse(volume, side, wavelet, levels) {
    const packed = Float64Array.from(volume);
    for (let level = 0, size = side; level < levels; level++, size /= 2)
      for (const step of [side * side, side, 1]) axis(packed, side, size, step, LOW[wavelet], false);
    return packed;
  }

  function synthesise(packed, side, wavelet, levels) {
    const volume = Float64Array.from(packed);
    for (let level = levels - 1; level >= 0; level--)
      for (const step of [1, side, side * side])
        axis(volume, side, side / 2 ** level, step, LOW[wavelet], true);
    return volume;
  }

  // Keep the chosen bands of every level; `aaa` exists on the last level only.
  function select(packed, side, levels, chosen) {
    const kept = new Float64Array(packed.length);
    let energy = 0, total = 0;
    for (let d = 0, at = 0; d < side; d++) for (let h = 0; h < side; h++) for (let w = 0; w < side; w++, at++) {
      let half = side / 2, level = 1;
      while (level < levels && d < half && h < half && w < half) { half /= 2; level++; }
      const band = 4 * (d >= half) + 2 * (h >= half) + (w >= half), square = packed[at] ** 2;
      total += square;
      if (chosen[band]) { kept[at] = packed[at]; energy += square; }
    }
    return { kept, share: total ? energy / total : 0 };
  }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { BANDS, analyse, synthesise, select };
    return;
  }

  // --- the page ----------------------------------------------------------------------------------

  const PRESETS = { published: 0b01111110, "all detail": 0b11111110, "coarse only": 0b00000001, all: 0b11111111 };
  const state = { wavelet: "db4", levels: 1, slice: 34, bands: PRESETS.published };
  const chosen = () => BANDS.map((_, band) => Boolean(state.bands & (1 << band)));

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (LOW[given.get("wavelet")]) state.wavelet = given.get("wavelet");
    for (const [name, least, most] of [["levels", 1, 3], ["slice", 0, 63], ["bands", 0, 255]]) {
      const value = Number(given.get(name));
      if (given.has(name) && Number.isInteger(value) && value >= least && value <= most) state[name] = value;
    }
  }

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // Grey is zero where a picture may be negative; otherwise black is.
  function paint(canvas, values, side, signed) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(side, side);
    const sizes = Float64Array.from(values, Math.abs).sort();
    const top = sizes[Math.floor(0.995 * (sizes.length - 1))] || 1;
    for (let i = 0; i < values.length; i++) {
      const value = signed ? 0.5 + 0.5 * values[i] / top : values[i] / top;
      pixels.data.fill(255 * Math.min(1, Math.max(0, value)), 4 * i, 4 * i + 3);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  }

  function cut(volume, side, d, from = [0, 0], size = side) {
    const slice = new Float64Array(size * size);
    for (let h = 0; h < size; h++) for (let w = 0; w < size; w++)
      slice[h * size + w] = volume[(d * side + from[0] + h) * side + from[1] + w];
    return slice;
  }

  function build(root, volume, side) {
    const picture = (size, label) => element("canvas", { width: size, height: size, role: "img", "aria-label": label });
    const original = picture(side, "slice of the volume"), result = picture(side, "what the chosen bands hold");
    const told = element("p", { class: "dcd-explorer-told", "aria-live": "polite" });
    const wavelet = element("select", { id: "dcd-wavelet" }, ...Object.keys(LOW).map(name => element("option", { value: name }, name)));
    const levels = element("select", { id: "dcd-levels" }, ...[1, 2, 3].map(n => element("option", { value: n }, String(n))));
    const slice = element("input", { id: "dcd-slice", type: "range", min: 0, max: side - 1 });
    const boxes = BANDS.map(band => element("input", { type: "checkbox", id: `dcd-${band}` }));
    const thumbs = BANDS.map(band => picture(side / 2, `band ${band}`));
    const presets = Object.entries(PRESETS).map(([name, bands]) => {
      const button = element("button", { type: "button" }, name);
      button.addEventListener("click", () => change({ bands }));
      return button;
    });
    const field = (text, control) => element("label", { for: control.id }, text, " ", control);
    root.replaceChildren(
      element("div", { class: "dcd-explorer-row" }, field("wavelet", wavelet), field("levels", levels), field("slice", slice)),
      element("div", { class: "dcd-explorer-views" },
        element("figure", {}, original, element("figcaption", {}, "volume")),
        element("div", { class: "dcd-explorer-bands", role: "group", "aria-label": "bands of the last level" },
          ...BANDS.map((band, i) => element("label", { for: `dcd-${band}` }, thumbs[i], element("span", {}, boxes[i], ` ${band}`)))),
        element("figure", {}, result, element("figcaption", {}, "what the ticked bands hold"))),
      element("div", { class: "dcd-explorer-row" }, ...presets), told);

    let packed, key = "";
    function draw() {
      if (key !== (key = `${state.wavelet} ${state.levels}`)) packed = analyse(volume, side, state.wavelet, state.levels);
      const { kept, share } = select(packed, side, state.levels, chosen());
      const rebuilt = synthesise(kept, side, state.wavelet, state.levels);
      const size = side >> state.levels, d = state.slice >> state.levels, coarse = chosen()[0];
      paint(original, cut(volume, side, state.slice), side, false);
      paint(result, cut(rebuilt, side, state.slice), side, !coarse);
      thumbs.forEach((canvas, band) => {
        canvas.width = canvas.height = size;
        const [z, y, x] = [4, 2, 1].map(bit => (band & bit ? size : 0));
        paint(canvas, cut(packed, side, d + z, [y, x], size), size, band > 0);
      });
      wavelet.value = state.wavelet;
      levels.value = state.levels;
      slice.value = state.slice;
      boxes.forEach((box, band) => { box.checked = chosen()[band]; });
      const names = BANDS.filter((_, band) => chosen()[band]).join(", ") || "no band";
      const percent = share > 0 && share < 0.0995 ? (100 * share).toFixed(1) : (100 * share).toFixed(0);
      told.textContent = `Slice ${state.slice}, ${state.levels} level${state.levels > 1 ? "s" : ""} of ${state.wavelet}: `
        + `${names} hold${names.includes(",") ? "" : "s"} ${percent} % of the volume's energy.`;
      root.dataset.share = share;
      root.dataset.state = "ready";
    }
    function change(values) {
      Object.assign(state, values);
      history.replaceState(null, "", `#${new URLSearchParams(state)}`);
      draw();
    }
    wavelet.addEventListener("change", () => change({ wavelet: wavelet.value }));
    levels.addEventListener("change", () => change({ levels: Number(levels.value) }));
    slice.addEventListener("input", () => change({ slice: Number(slice.value) }));
    boxes.forEach((box, band) => box.addEventListener("change", () => change({ bands: state.bands ^ (1 << band) })));
    window.addEventListener("hashchange", () => { read(); draw(); });
    read();
    draw();
  }

  function unpack(image, side) {
    const canvas = element("canvas", { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const perRow = image.width / side, volume = new Float64Array(side ** 3);
    for (let d = 0; d < side; d++) {
      const tile = context.getImageData((d % perRow) * side, Math.floor(d / perRow) * side, side, side).data;
      for (let i = 0; i < side * side; i++) volume[d * side * side + i] = tile[4 * i];
    }
    return volume;
  }

  function start() {
    const root = document.getElementById("dcd-explorer");
    if (!root || !window.dcdVolume) return;
    const image = new Image(), { side, png } = window.dcdVolume;
    const failed = () => { root.dataset.state = "failed"; }; // the picture that is there stays
    image.addEventListener("load", () => { try { build(root, unpack(image, side), side); } catch (error) { failed(); throw error; } });
    image.addEventListener("error", failed);
    image.src = png;
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
