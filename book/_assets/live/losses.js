// The losses of every student under a choice (see distance.js): of a channel, of a stage, and of all
// aligned stages, as training takes them. Sums of squares are kept, so that a band, a number of
// levels or a weighting is answered at once; another wavelet is computed anew.
(() => {
  "use strict";
  const dcd = globalThis.dcd, { distance, wavelet } = dcd;
  const DEEPEST = 3;

  function minus(one, other) {
    return one.map((value, at) => value - other[at]);
  }

  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanSquare = volume => volume.reduce((sum, value) => sum + value * value, 0) / volume.length;

  function losses({ sides, teacher, students }) {
    const kept = new Map();

    const difference = (student, stage, channel) =>
      minus(students[student].stages[stage].of(channel), teacher.stages[stage].of(channel));

    // Of every channel of a stage: its mean square and the energies of its bands, by level.
    function sums(student, stage, name) {
      const key = `${student} ${stage} ${name}`;
      if (!kept.has(key)) kept.set(key, Array.from({ length: teacher.stages[stage].channels }, (_, channel) => {
        const volume = difference(student, stage, channel);
        return { mse: meanSquare(volume), energies: distance.energies(volume, sides[stage], name, DEEPEST) };
      }));
      return kept.get(key);
    }

    // The terms of the loss of one channel, (level, band).
    const terms = (student, stage, channel, choice) =>
      distance.terms(sums(student, stage, choice.wavelet)[channel].energies, sides[stage], choice);
    const ofChannel = (...given) => distance.total(terms(...given));
    const ofStage = (student, stage, choice) =>
      mean(sums(student, stage, choice.wavelet).map((_, channel) => ofChannel(student, stage, channel, choice)));
    const ofNetwork = (student, choice) =>
      mean(sides.map((_, stage) => ofStage(student, stage, choice)));
    const mse = (student, stage, choice) => mean(sums(student, stage, choice.wavelet).map(one => one.mse));

    // The part of the mean square that lies in the coarse band of the last level.
    const coarse = (student, stage, choice) => ofStage(student, stage, {
      ...choice, weighting: "energy", bands: wavelet.BANDS.map((_, band) => band === 0),
    });

    return { coarse, difference, mse, ofChannel, ofNetwork, ofStage, sums, terms };
  }

  dcd.losses = losses;
})();
