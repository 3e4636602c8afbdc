// The features that the explorer shows: `load` brings them from their own script, when they are
// wanted. They are 8-bit whole numbers, with the size of one step for each channel.
(() => {
  "use strict";
  const dcd = globalThis.dcd;

  async function bytes(text) {
    if (!globalThis.DecompressionStream) throw new Error("this browser is too old to unpack the features");
    const packed = Uint8Array.from(atob(text), character => character.charCodeAt(0));
    const opened = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(opened).arrayBuffer();
  }

  // One network: `stages[i].of(channel)` is a cube of numbers.
  async function network({ arm, step, channels, steps, data }, sides) {
    const whole = new Int8Array(await bytes(data));
    let start = 0;
    const stages = sides.map((side, i) => {
      const size = side ** 3, first = start;
      start += channels[i] * size;
      const of = channel => Float64Array.from(
        whole.subarray(first + channel * size, first + (channel + 1) * size), x => x * steps[i][channel]);
      return { channels: channels[i], of };
    });
    if (start !== whole.length) throw new Error(`${arm}: ${whole.length} numbers, not ${start}`);
    return { arm, step, stages };
  }

  // A student seen through a projection: channels of the teacher, made of its own channels.
  function projected({ arm, kind, step, weights }, networks) {
    const own = networks.find(one => one.arm === arm && one.step === step);
    const stages = weights.map((rows, i) => {
      let maps; // the student's own channels, unpacked once
      const of = channel => {
        maps ??= Array.from({ length: own.stages[i].channels }, (_, c) => own.stages[i].of(c));
        const sum = new Float64Array(maps[0].length);
        rows[channel].forEach((weight, c) => {
          for (let at = 0; at < sum.length; at++) sum[at] += weight * maps[c][at];
        });
        return sum;
      };
      return { channels: rows.length, of };
    });
    return { name: `${arm}-${kind}`, arm, kind, step, stages };
  }

  async function load(address) {
    await dcd.scripts.load(address, "the features");
    const given = globalThis.dcdFeatures, sides = given.stages;
    const networks = await Promise.all(given.networks.map(one => network(one, sides)));
    return {
      sides,
      command: given.command,
      entries: given.runs,
      fitted: given.fit_patches,
      patch: given.patch,
      teacher: networks.find(one => one.arm === "teacher"),
      students: given.projections.map(one => projected(one, networks)),
      scan: {
        ...given.case,
        image: new Uint8Array(await bytes(given.case.image)),
        lesion: new Uint8Array(await bytes(given.case.lesion)),
      },
    };
  }

  dcd.features = { load };
})();
