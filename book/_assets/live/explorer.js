// The explorer: features of a teacher and of its students, their difference, and what the loss sees
// of it. One state, kept in the address, decides everything that is shown.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { address, controls, distance, slices, wavelet } = dcd;
  const { element } = controls;
  const PRESETS = { published: 0b01111110, "all detail": 0b11111110, "coarse only": 0b00000001, all: 0b11111111 };
  const PUBLISHED = { wavelet: "db4", levels: 3, weighting: "resolution", bands: PRESETS.published };
  const AXES = ["i", "j", "k"];
  const here = document.currentScript.src;

  const colour = (signed, top) => (signed
    ? value => slices.signed(value / top) : value => slices.grey(value / top));

  // Everything that is computed from the features, for the state at hand.
  function model(triple) {
    const losses = dcd.losses(triple), { sides, teacher, students } = triple;
    const loudness = teacher.stages.map(stage => {
      const energies = Array.from({ length: stage.channels }, (_, channel) =>
        stage.of(channel).reduce((sum, value) => sum + value * value, 0));
      const whole = energies.reduce((sum, energy) => sum + energy);
      return energies.map(energy => energy / whole);
    });
    const loudest = stage => loudness[stage].indexOf(Math.max(...loudness[stage]));
    const choice = state => ({
      wavelet: state.wavelet, levels: state.levels, weighting: state.weighting,
      bands: wavelet.BANDS.map((_, band) => Boolean(state.bands & (1 << band))),
    });
    const student = state => students.findIndex(one => one.name === state.student);

    function volumes(state) {
      const { stage, channel } = state, size = Array(3).fill(sides[stage]), chosen = choice(state);
      const differences = students.map((_, index) => losses.difference(index, stage, channel));
      const seen = differences.map(volume => distance.seen(volume, sides[stage], chosen));
      const taught = teacher.stages[stage].of(channel), own = student(state);
      // One scale for features and their difference; another, for what the loss weighs.
      const tops = { features: slices.top(taught), seen: Math.max(...seen.map(slices.top)) };
      return {
        tops,
        teacher: { size, values: taught },
        student: { size, values: students[own].stages[stage].of(channel) },
        difference: { size, values: differences[own] },
        seen: { size, values: seen[own] },
      };
    }
    return { choice, losses, loudest, loudness, student, volumes };
  }

  function fields(triple) {
    const { sides, students, patch, teacher } = triple, { oneOf, whole } = address;
    return {
      student: oneOf(students.map(one => one.name)),
      stage: whole(0, sides.length - 1),
      channel: whole(0, Math.max(...teacher.stages.map(stage => stage.channels)) - 1),
      wavelet: oneOf(wavelet.NAMES),
      levels: whole(1, 3),
      weighting: oneOf(["resolution", "energy"]),
      bands: whole(0, 255),
      ...Object.fromEntries(AXES.map((name, i) =>
        [name, whole(patch.start[i], patch.start[i] + patch.size[i] - 1)])),
    };
  }

  function opening(triple, computed) {
    const { start, size } = triple.patch;
    const middle = AXES.map((name, i) => [name, start[i] + size[i] / 2]);
    return { student: "DCD-fitted", stage: 0, channel: computed.loudest(0), ...PUBLISHED, ...Object.fromEntries(middle) };
  }

  function provenance({ command, entries, fitted, scan }) {
    const code = text => element("code", {}, text), runs = Object.values(entries).map(({ entry }) => code(entry));
    return element("p", { class: "dcd-run" }, "Recorded runs ", ...runs.flatMap((run, i) => (i ? [", ", run] : [run])),
      "; test case ", code(scan.id), ` of the synthetic cohort; projections fitted on ${fitted} patches of val cases; features rounded to 8 bits by `,
      code(command), ".");
  }

  function build(root, triple) {
    const computed = model(triple), { losses } = computed, { sides, patch, students } = triple;
    const meanings = fields(triple), start = opening(triple, computed);
    let state;

    function read() {
      const given = address.read(meanings), next = { ...start, ...given };
      const { channels } = triple.teacher.stages[next.stage];
      if (given.channel === undefined || next.channel >= channels) next.channel = computed.loudest(next.stage);
      state = next;
    }

    function change(values) {
      Object.assign(state, values);
      if ("stage" in values) state.channel = computed.loudest(state.stage);
      address.write(state);
      draw();
    }

    // --- what is shown -----------------------------------------------------------------------------

    const inside = () => AXES.map((name, i) => state[name] - patch.start[i] + 0.5); // the middle of a voxel
    const moved = place => {
      const voxel = place(inside()).map((value, i) =>
        patch.start[i] + Math.min(patch.size[i] - 1, Math.max(0, Math.floor(value))));
      change(Object.fromEntries(AXES.map((name, i) => [name, voxel[i]])));
    };
    const view = dcd.panels(triple, moved);
    const figures = dcd.tables(triple, losses, change);
    const told = element("p", { class: "dcd-live-told", "aria-live": "polite" });
    const number = text => Number(text);
    const choose = {
      stage: controls.select("dcd-stage", sides.map((side, i) => [i, `${i} (${side} × ${side} × ${side})`]), text => change({ stage: number(text) })),
      channel: controls.select("dcd-channel", [], text => change({ channel: number(text) })),
      wavelet: controls.select("dcd-wavelet", wavelet.NAMES, name => change({ wavelet: name })),
      levels: controls.select("dcd-levels", [1, 2, 3], text => change({ levels: number(text) })),
      weighting: controls.select("dcd-weighting", ["resolution", "energy"], name => change({ weighting: name })),
    };
    const presets = Object.entries(PRESETS).map(([name, bands]) => controls.button(name, () => change({ bands })));
    const row = (...children) => element("div", { class: "dcd-live-row" }, ...children);
    root.replaceChildren(
      figures.students,
      row(...Object.entries(choose).map(([name, control]) => controls.field(name, control)),
        controls.button("published setting", () => change(PUBLISHED))),
      view.grid,
      row(...view.sliders),
      told,
      row(element("span", {}, "bands"), ...presets),
      figures.bands,
      provenance(triple));

    function fill() {
      const shares = computed.loudness[state.stage];
      choose.channel.fill(shares.map((share, i) => [i, `${i} (${controls.percent(share)} of the energy)`]));
      for (const [name, control] of Object.entries(choose)) control.value = state[name];
    }

    function tell(loss) {
      const used = wavelet.usableLevels(sides[state.stage], state.wavelet, state.levels);
      const { counted } = controls, chosen = wavelet.BANDS.filter((_, band) => computed.choice(state).bands[band]);
      const one = students[computed.student(state)];
      const levels = used === state.levels ? counted(used, "level")
        : `${used} of ${counted(state.levels, "level")}, all that this grid allows,`;
      told.textContent = `Sagittal slice ${state.i}, coronal ${state.j}, axial ${state.k}. Channel ${state.channel} of stage `
        + `${state.stage}, ${one.arm} student through its ${one.kind} projection. `
        + `With ${levels} of ${state.wavelet} and ${counted(chosen.length, "band")} of eight, the loss of the channel is `
        + `${controls.digits(loss)}. ` + (wavelet.orthogonal(state.wavelet)
        ? "It is the mean of the squares of what the loss sees, over the whole patch."
        : `It is a mean of squared coefficients; ${state.wavelet} is not orthogonal, and the picture has another mean square.`);
    }

    let run = 0;
    async function draw() {
      const mine = ++run, choice = computed.choice(state), own = computed.student(state);
      root.dataset.state = "working";
      fill();
      view.draw(state, cached(state), inside());
      const loss = losses.ofChannel(own, state.stage, state.channel, choice);
      tell(loss);
      figures.draw(state, choice, own);
      // The other students and stages follow one by one, and the page stays responsive.
      for (const stage of sides.keys()) for (const index of students.keys()) {
        await new Promise(resolve => setTimeout(resolve));
        if (mine !== run) return;
        losses.sums(index, stage, choice.wavelet);
      }
      figures.finish(state, choice);
      root.dataset.channelLoss = loss;
      root.dataset.stageLoss = losses.ofStage(own, state.stage, choice);
      root.dataset.networkLoss = losses.ofNetwork(own, choice);
      root.dataset.state = "ready";
    }

    let last = { key: "" };
    function cached({ i, j, k, ...rest }) {
      const key = JSON.stringify(rest);
      if (last.key !== key) last = { key, volumes: computed.volumes(state) };
      return last.volumes;
    }

    address.follow(meanings, () => { read(); draw(); });
    read();
    draw();
  }

  function start() {
    const root = document.getElementById("dcd-explorer");
    const failed = error => { // the still picture stays, and the reader learns why
      root.dataset.state = "failed";
      root.append(element("p", { role: "alert" }, `The explorer could not start: ${error.message}.`));
    };
    // The features are large: they come when the figure is near.
    const watch = new IntersectionObserver(async entries => {
      if (!entries.some(entry => entry.isIntersecting)) return;
      watch.disconnect();
      try {
        build(root, await dcd.features.load(new URL("stroke-features.js", here).href));
      } catch (error) {
        failed(error);
      }
    }, { rootMargin: "600px" });
    watch.observe(root);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
