// The loss of one channel, band by band, as `dcd_core.wavelet.energy` defines it, on cubes.
// A choice is { wavelet, levels, bands, weighting }: `bands` has one truth value for each band;
// "aaa" stands for the coarse band of the last level, with `coarse_weight` 1.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { wavelet } = dcd;

  // Sums of squares of all eight bands, level by level, as deep as the cube allows.
  function energies(volume, side, name, deepest) {
    const packed = Float64Array.from(volume), levels = wavelet.usableLevels(side, name, deepest);
    return Array.from({ length: levels }, (_, level) => {
      const size = side / 2 ** level;
      wavelet.split(packed, side, size, name);
      return wavelet.BANDS.map((_, band) => {
        let sum = 0;
        wavelet.octant(side, size / 2, band, at => { sum += packed[at] ** 2; });
        return sum;
      });
    });
  }

  // What a square of a level counts. "resolution": the mean of each level on its own grid, then the
  // mean over levels; "energy": every square counts the same.
  function weights(side, levels, weighting) {
    return Array.from({ length: levels }, (_, level) =>
      weighting === "energy" ? 1 / side ** 3 : 1 / levels / (side / 2 ** level) ** 3);
  }

  const counts = (band, level, levels, bands) => bands[band] && (band > 0 || level === levels - 1);

  // The terms of the loss, (level, band); they sum to the loss.
  function terms(sums, side, choice) {
    const levels = Math.min(sums.length, choice.levels);
    return weights(side, levels, choice.weighting).map((weight, level) => sums[level].map(
      (sum, band) => (counts(band, level, levels, choice.bands) ? weight * sum : 0)));
  }

  const total = table => table.flat().reduce((sum, term) => sum + term, 0);

  // A difference as the loss sees it: each coefficient times the root of its weight, the others
  // zero, put together again. For an orthogonal wavelet the mean of its squares is the loss.
  function seen(volume, side, choice) {
    const levels = wavelet.usableLevels(side, choice.wavelet, choice.levels);
    const packed = wavelet.analyse(volume, side, choice.wavelet, levels);
    const weighed = new Float64Array(packed.length);
    weights(side, levels, choice.weighting).forEach((weight, level) => {
      const root = Math.sqrt(weight * side ** 3), half = side / 2 ** (level + 1);
      wavelet.BANDS.forEach((_, band) => {
        if (counts(band, level, levels, choice.bands))
          wavelet.octant(side, half, band, at => { weighed[at] = root * packed[at]; });
      });
    });
    return wavelet.synthesise(weighed, side, choice.wavelet, levels);
  }

  dcd.distance = { energies, seen, terms, total };
})();
