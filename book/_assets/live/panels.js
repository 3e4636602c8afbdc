// The pictures of the explorer: a column for the scan and for each volume, a row for each plane, a
// colour bar below, and a slider for each plane.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { controls, slices } = dcd, { element } = controls;
  const PLANES = Object.keys(slices.PLANES);
  const COLUMNS = {
    scan: "scan (DWI)", teacher: "teacher", student: "student",
    difference: "student − teacher", seen: "what the loss sees",
  };

  function bar(signed) {
    const canvas = element("canvas", { width: 128, height: 1, "aria-hidden": "true" });
    const context = canvas.getContext("2d"), pixels = context.createImageData(128, 1);
    for (let i = 0; i < 128; i++) pixels.data.set([...signed((i - 63.5) / 63.5), 255], 4 * i);
    context.putImageData(pixels, 0, 0);
    const ends = [element("span"), element("span", {}, "0"), element("span")];
    return {
      part: element("div", { class: "dcd-live-bar" }, canvas, element("div", {}, ...ends)),
      scale(top) {
        ends[0].textContent = `−${controls.digits(top)}`;
        ends[2].textContent = `+${controls.digits(top)}`;
      },
    };
  }

  function panels(triple, moved) {
    const { patch, sides } = triple, { size, towards } = triple.scan;
    const scan = { size, values: triple.scan.image }, lesion = { size, values: triple.scan.lesion };
    const cut = { size: patch.size, values: within(lesion, patch) };
    const columns = Object.entries(COLUMNS).map(([name, text]) => {
      const grid = name === "scan" ? size : patch.size;
      const canvases = PLANES.map(plane => {
        const canvas = element("canvas", { role: "img" }), { width, height } = slices.geometry(grid, plane);
        canvas.style.width = `${100 * width / Math.max(width, height)}%`;
        slices.pointed(canvas, plane, grid, place => moved(name === "scan" ? shifted(place, patch.start) : place));
        return canvas;
      });
      return { name, text, canvases, bar: name === "scan" ? null : bar(slices.signed) };
    });
    const sliders = PLANES.map(plane => {
      const { axis } = slices.PLANES[plane], first = patch.start[axis];
      const control = controls.slider(`dcd-${plane}`, [first, first + patch.size[axis] - 1, 1], value =>
        moved(at => at.map((old, i) => (i === axis ? value - first + 0.5 : old))));
      return { plane, axis, control, shown: element("output", { for: control.id }) };
    });
    const grid = element("div", { class: "dcd-live-grid" }, ...columns.map(column => element("figure", {},
      element("figcaption", {}, column.text),
      ...column.canvases.map(canvas => element("div", { class: "dcd-live-cell" }, canvas)),
      column.bar ? column.bar.part : element("div", { class: "dcd-live-bar" }, rightSide(towards)))));

    function draw(state, volumes, at) {
      const { tops } = volumes, scale = sides[state.stage] / patch.size[0];
      for (const { name, text, canvases, bar: legend } of columns) {
        const top = name === "seen" ? tops.seen : tops.features;
        PLANES.forEach((plane, row) => {
          const canvas = canvases[row];
          canvas.setAttribute("aria-label", `${text}, ${plane} slice`);
          if (name === "scan") slices.draw(canvas, scan, plane, at.map((value, i) => value + patch.start[i]),
            { colour: value => slices.grey(value / 255), mask: lesion, frame: patch });
          else slices.draw(canvas, volumes[name], plane, at.map(value => value * scale),
            { colour: value => slices.signed(value / top), mask: cut });
        });
        legend?.scale(top);
      }
      for (const { axis, control, shown } of sliders)
        control.value = shown.value = state[["i", "j", "k"][axis]];
    }
    return {
      grid, draw,
      sliders: sliders.map(({ plane, control, shown }) =>
        element("label", { class: "dcd-live-field", for: control.id }, element("span", {}, `${plane} slice `, shown), control)),
    };
  }

  // Which side of the patient is on the right of the pictures.
  const rightSide = towards => `${{ L: "left", R: "right" }[towards[0]]} side of the patient on the right`;

  const shifted = (place, start) => at =>
    place(at.map((value, i) => value + start[i])).map((value, i) => value - start[i]);

  // The part of a volume inside a box.
  function within({ size, values }, box) {
    const part = new Uint8Array(box.size.reduce((a, b) => a * b));
    let to = 0;
    for (let i = 0; i < box.size[0]; i++) for (let j = 0; j < box.size[1]; j++) for (let k = 0; k < box.size[2]; k++)
      part[to++] = values[((box.start[0] + i) * size[1] + box.start[1] + j) * size[2] + box.start[2] + k];
    return part;
  }

  dcd.panels = panels;
})();
