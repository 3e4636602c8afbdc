// Scripts that a live figure loads when it is asked for: libraries, and data, which pages that lie in
// a folder may not fetch. One that failed may be tried again.
(() => {
  "use strict";
  const dcd = globalThis.dcd ??= {};
  const loading = new Map();

  function load(address, what) {
    if (!loading.has(address)) loading.set(address, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = address;
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => {
        loading.delete(address);
        script.remove();
        reject(new Error(`${what} could not be loaded`));
      });
      document.head.append(script);
    }));
    return loading.get(address);
  }

  dcd.scripts = { load };
})();
