// The numbers of the explorer: the losses of every student, one of which is shown, and of which
// levels and bands the loss of the shown channel is made.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { controls, distance, wavelet } = dcd, { digits, element, percent } = controls;
  const HEADS = ["student and projection", "loss of the channel", "of the stage", "of all stages", "MSE of the stage", "of it coarse"];

  const cells = (tag, texts) => texts.map(text => element(tag, {}, text));

  function tables({ sides, students }, losses, change) {
    const rows = students.map(one => {
      const radio = element("input", { type: "radio", name: "dcd-student", value: one.name, id: `dcd-${one.name}` });
      radio.addEventListener("change", () => change({ student: one.name }));
      const label = element("label", { for: radio.id }, radio, ` ${one.arm}, ${one.kind}`);
      const values = cells("td", Array(HEADS.length - 1).fill(""));
      return { name: one.name, radio, values, part: element("tr", {}, element("th", { scope: "row" }, label), ...values) };
    });
    let bands = 0;
    const boxes = wavelet.BANDS.map((name, band) => {
      const box = element("input", { type: "checkbox", id: `dcd-${name}` });
      box.addEventListener("change", () => change({ bands: bands ^ (1 << band) }));
      return box;
    });
    const heads = wavelet.BANDS.map((name, band) =>
      element("th", { scope: "col" }, element("label", { for: `dcd-${name}` }, boxes[band], element("span", {}, name))));
    const body = element("tbody");
    const scroll = (name, ...children) => element("div", { class: `dcd-live-scroll dcd-live-${name}` }, element("table", {}, ...children));
    const heading = element("tr", {}, ...HEADS.map(text => element("th", { scope: "col" }, text)));

    // One row for each level: the share of the loss of the shown channel that each band has.
    function share(state, choice, own) {
      const table = losses.terms(own, state.stage, state.channel, choice);
      const whole = distance.total(table);
      const weight = level => (choice.weighting === "resolution" ? 8 ** level : 1); // of a square
      body.replaceChildren(...table.map((terms, level) => {
        const side = sides[state.stage] / 2 ** (level + 1);
        return element("tr", {}, element("th", { scope: "row" }, `level ${level + 1} (${side}³), × ${weight(level)}`), ...terms.map((term, band) => {
          const exists = band > 0 || level === table.length - 1, part = whole ? term / whole : 0;
          const cell = element("td", {}, !exists ? "" : choice.bands[band] ? percent(part) : "free");
          cell.style.setProperty("--share", part);
          return cell;
        }));
      }));
    }

    function show(row, index, state, choice, all) {
      const { stage, channel } = state;
      const values = [
        losses.ofChannel(index, stage, channel, choice), losses.ofStage(index, stage, choice),
        all ? losses.ofNetwork(index, choice) : "…", losses.mse(index, stage, choice),
        // Bands of other wavelets do not add up to the mean square.
        wavelet.orthogonal(choice.wavelet) ? losses.coarse(index, stage, choice) : "–",
      ];
      row.values.forEach((cell, i) => {
        cell.textContent = typeof values[i] === "number" ? digits(values[i]) : values[i];
      });
    }

    return {
      students: scroll("students", element("thead", {}, heading), element("tbody", {}, ...rows.map(row => row.part))),
      bands: scroll("bands", element("thead", {}, element("tr", {}, element("th", {}, "share of the loss"), ...heads)), body),
      draw(state, choice, own) {
        bands = state.bands;
        boxes.forEach((box, band) => { box.checked = choice.bands[band]; });
        rows.forEach(row => {
          row.radio.checked = row.name === state.student;
          row.part.classList.toggle("dcd-live-shown", row.radio.checked);
        });
        show(rows[own], own, state, choice, false);
        share(state, choice, own);
      },
      finish: (state, choice) => rows.forEach((row, index) => show(row, index, state, choice, true)),
    };
  }

  dcd.tables = tables;
})();
