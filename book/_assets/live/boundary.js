// A boundary in a small cube: a ball or a shell, as a teacher has it, and as a student may have it:
// moved, blurred, thinner, noisy, brighter, shaded. What they differ by is measured as features are.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { distance } = dcd;
  const SIDE = 32, MIDDLE = (SIDE - 1) / 2, EDGE = 0.7; // voxels: the softness of the teacher's boundary
  const SHAPES = { ball: { outer: 9, inner: 0 }, shell: { outer: 10, inner: 7 } };
  // What may differ: [largest, step, a usual amount], lengths in voxels, the rest in units of the
  // contrast between inside and outside.
  const CHANGES = {
    move: [6, 0.1, 0.5], blur: [4, 0.1, 1], thin: [3, 0.1, 0.5],
    noise: [0.5, 0.01, 0.1], brighten: [0.5, 0.01, 0.1], shade: [0.5, 0.01, 0.1],
  };
  const PUBLISHED = [false, true, true, true, true, true, true, false];

  // Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 7.1.26: within 1.5e-7.
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return Math.sign(x) * (1 - tail * Math.exp(-x * x));
  }

  // A ball of this radius, blurred by a Gaussian of this width, at distance r from its middle.
  function ball(r, radius, width) {
    if (radius <= 0) return 0;
    const root = Math.SQRT2 * width, far = Math.max(r, 1e-6);
    const wave = Math.exp(-(((far - radius) / root) ** 2)) - Math.exp(-(((far + radius) / root) ** 2));
    return 0.5 * (erf((radius - far) / root) + erf((radius + far) / root)) - width / (far * Math.sqrt(2 * Math.PI)) * wave;
  }

  // The same noise at every visit: mulberry32, made normal by Box and Muller.
  let noise;
  function normal() {
    let seed = 1;
    const uniform = () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
    return Float64Array.from({ length: SIDE ** 3 }, () =>
      Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  }

  function volume(shape, changes = {}) {
    const { move = 0, blur = 0, thin = 0, brighten = 0, shade = 0 } = changes;
    const { outer, inner } = SHAPES[shape], width = Math.hypot(EDGE, blur), values = new Float64Array(SIDE ** 3);
    const lost = inner ? thin / 2 : thin; // a shell is thinned from both sides
    if (changes.noise) noise ??= normal();
    for (let i = 0, at = 0; i < SIDE; i++) for (let j = 0; j < SIDE; j++) for (let k = 0; k < SIDE; k++, at++) {
      const r = Math.hypot(i - MIDDLE - move, j - MIDDLE, k - MIDDLE);
      values[at] = ball(r, outer - lost, width) - (inner ? ball(r, inner + lost, width) : 0)
        + brighten + shade * Math.cos(2 * Math.PI * j / SIDE) + (changes.noise ? changes.noise * noise[at] : 0);
    }
    return values;
  }

  const sum = values => values.reduce((total, value) => total + value, 0);

  // The four squared errors of a difference, not yet divided by anything.
  function errors(difference, wavelet, levels) {
    const energies = distance.energies(difference, SIDE, wavelet, levels), deepest = energies.length - 1;
    const loss = weighting => distance.total(distance.terms(energies, SIDE, { levels, weighting, bands: PUBLISHED }));
    const coarse = energies[deepest][0], diagonal = sum(energies.map(level => level[7]));
    const seen = sum(energies.map(level => sum(level.slice(1, 7))));
    return {
      mse: sum(difference.map(value => value * value)) / SIDE ** 3,
      resolution: loss("resolution"), energy: loss("energy"), coarse: coarse / SIDE ** 3,
      parts: { seen, coarse, diagonal },
    };
  }

  function dice(one, other) {
    let both = 0, either = 0;
    one.forEach((value, at) => {
      const [a, b] = [value > 0.5, other[at] > 0.5];
      both += a && b;
      either += a + b;
    });
    return either ? 2 * both / either : 1;
  }

  // What was computed once is kept as long as the page is open.
  const kept = new Map();
  function once(key, compute) {
    if (!kept.has(key)) kept.set(key, compute());
    return kept.get(key);
  }

  const named = ({ shape, wavelet, levels }, ...more) => JSON.stringify([shape, wavelet, levels, ...more]);

  const reference = state => once(named(state), () => {
    const values = volume(state.shape);
    return { values, errors: errors(values, state.wavelet, state.levels) };
  });

  // Each error in units of that of a student that shows nothing: 0 is a copy, 1 an empty volume.
  // `parts` are the shares of the difference that the published bands, `aaa` and `ddd` hold.
  function measure(state, changes) {
    const teacher = reference(state), student = volume(state.shape, changes);
    const difference = student.map((value, at) => value - teacher.values[at]);
    const found = errors(difference, state.wavelet, state.levels), whole = sum(Object.values(found.parts));
    const relative = name => found[name] / teacher.errors[name];
    return {
      teacher: teacher.values, student, difference,
      mse: relative("mse"), resolution: relative("resolution"), energy: relative("energy"), coarse: relative("coarse"),
      dice: dice(teacher.values, student),
      parts: Object.fromEntries(Object.entries(found.parts).map(([name, part]) => [name, whole > 1e-12 ? part / whole : 0])),
    };
  }

  // The shares of one change alone.
  const shares = (state, name, amount) =>
    once(named(state, name, amount), () => measure(state, { [name]: amount }).parts);

  dcd.boundary = { CHANGES, PUBLISHED, SHAPES, SIDE, measure, shares, volume };
})();
