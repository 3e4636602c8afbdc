// The state of a figure in the address of its page, after the #: a link leads to one exact view.
(() => {
  "use strict";
  const dcd = globalThis.dcd;

  const whole = (least, most) => text =>
    (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : undefined);
  const number = (least, most) => text =>
    (text !== "" && Number(text) >= least && Number(text) <= most ? Number(text) : undefined);
  const oneOf = names => text => (names.includes(text) ? text : undefined);

  // What the address says of the state: `fields` has a reader for each name. What it cannot mean is
  // left out, so that an old or a mistyped link still opens the page.
  function read(fields) {
    const given = new URLSearchParams(location.hash.slice(1)), found = {};
    for (const [name, meaning] of Object.entries(fields)) {
      const value = given.has(name) ? meaning(given.get(name)) : undefined;
      if (value !== undefined) found[name] = value;
    }
    return found;
  }

  // The entry is replaced: the button "back" leads to the page before, not through every step.
  function write(state) {
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  // Call `changed` when a link leads to another state; a link to a heading of the page is none.
  function follow(fields, changed) {
    window.addEventListener("hashchange", () => {
      if (Object.keys(read(fields)).length) changed();
    });
  }

  dcd.address = { follow, number, oneOf, read, whole, write };
})();
