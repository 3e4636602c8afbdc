// The periodized 3D wavelet transform, in place, on cubes in C order (D, H, W). Filters, names and
// values are those of PyWavelets (tests/book/test_live.py holds both together).
(() => {
  "use strict";

  // Low filters: of analysis, and of synthesis where it is not the same one reversed.
  const LOW = {
    haar: [[0.7071067811865476, 0.7071067811865476]],
    db2: [[-0.12940952255126037, 0.2241438680420134, 0.8365163037378079, 0.48296291314453416]],
    db4: [[-0.010597401785069032, 0.0328830116668852, 0.030841381835560764, -0.18703481171909309,
      -0.027983769416859854, 0.6308807679298589, 0.7148465705529157, 0.2303778133088965]],
    sym4: [[-0.07576571478927333, -0.02963552764599851, 0.49761866763201545, 0.8037387518059161,
      0.29785779560527736, -0.09921954357684722, -0.012603967262037833, 0.0322231006040427]],
    "bior2.2": [[0.0, -0.1767766952966369, 0.3535533905932738, 1.0606601717798212,
      0.3535533905932738, -0.1767766952966369],
      [0.0, 0.3535533905932738, 0.7071067811865476, 0.3535533905932738,
      0.0, 0.0]],
  };
  const BANDS = ["aaa", "aad", "ada", "add", "daa", "dad", "dda", "ddd"];

  // The four filters of a wavelet; the high ones follow from the low ones of the other side.
  function filters(name) {
    const [low, back = [...low].reverse()] = LOW[name];
    return {
      analysis: [low, back.map((tap, j) => (j % 2 ? tap : -tap))],
      synthesis: [back, low.map((tap, j) => (j % 2 ? -tap : tap))],
    };
  }

  const taps = name => LOW[name][0].length;
  const orthogonal = name => LOW[name].length === 1;

  // How many of the levels a cube allows: a filter must not wrap onto itself (dcd_core, `grids`).
  function usableLevels(side, name, levels) {
    let used = 0;
    while (used < levels && side >= taps(name)) { used++; side /= 2; }
    return used;
  }

  // Each line along one axis of the first `size` voxels of every axis goes through `change`, which
  // fills its second argument from its first. The first repeats itself before and after the line,
  // `around` voxels to each side.
  function along(volume, side, size, step, around, change) {
    const [outer, inner] = [side * side, side, 1].filter(other => other !== step);
    const before = new Float64Array(size + 2 * around), after = new Float64Array(size);
    for (let a = 0; a < size; a++) for (let b = 0; b < size; b++) {
      const start = a * outer + b * inner;
      for (let i = 0; i < size; i++) before[around + i] = volume[start + i * step];
      for (let i = 0; i < around; i++) {
        before[around - 1 - i] = before[around + size - 1 - i];
        before[around + size + i] = before[around + i];
      }
      change(before, after);
      for (let i = 0; i < size; i++) volume[start + i * step] = after[i];
    }
  }

  // One level: the cube of `size` voxels becomes eight octants, the low halves first. Coefficient k
  // is the sum over j of filter[j] x[length / 2 + 2 k - j], the periodization of PyWavelets.
  function split(volume, side, size, name) {
    const [low, high] = filters(name).analysis, length = low.length, half = size / 2;
    const first = length + length / 2;
    for (const step of [side * side, side, 1]) along(volume, side, size, step, length, (x, bands) => {
      for (let k = 0; k < half; k++) {
        let coarse = 0, detail = 0;
        for (let j = 0, at = first + 2 * k; j < length; j++, at--) {
          coarse += low[j] * x[at];
          detail += high[j] * x[at];
        }
        bands[k] = coarse;
        bands[half + k] = detail;
      }
    });
  }

  // The inverse of `split`: coefficient k adds filter[j] times itself to voxel 2 k - length / 2 + 1 + j.
  function join(volume, side, size, name) {
    const [low, high] = filters(name).synthesis, length = low.length, half = size / 2;
    for (const step of [1, side, side * side]) along(volume, side, size, step, 0, (bands, x) => {
      x.fill(0);
      for (let k = 0; k < half; k++) for (let j = 0; j < length; j++) {
        const at = (2 * k - length / 2 + 1 + j + 2 * size) % size;
        x[at] += low[j] * bands[k] + high[j] * bands[half + k];
      }
    });
  }

  // Packed pyramid: each level puts its eight bands into the octants of the cube of `aaa` above it.
  function analyse(volume, side, name, levels) {
    const packed = Float64Array.from(volume);
    for (let level = 0; level < levels; level++) split(packed, side, side / 2 ** level, name);
    return packed;
  }

  function synthesise(packed, side, name, levels) {
    const volume = Float64Array.from(packed);
    for (let level = levels - 1; level >= 0; level--) join(volume, side, side / 2 ** level, name);
    return volume;
  }

  // Call `visit` with the place of every coefficient of one band; `half` is the side of its level.
  function octant(side, half, band, visit) {
    const [d0, h0, w0] = [4, 2, 1].map(bit => (band & bit ? half : 0));
    for (let d = d0; d < d0 + half; d++) for (let h = h0; h < h0 + half; h++) {
      const start = (d * side + h) * side;
      for (let w = w0; w < w0 + half; w++) visit(start + w);
    }
  }

  const dcd = globalThis.dcd ??= {};
  dcd.wavelet = {
    BANDS, NAMES: Object.keys(LOW), analyse, octant, orthogonal, split, synthesise, usableLevels,
  };
})();
