// The controls of a live figure: elements, labelled fields, and numbers as the text shows them.
(() => {
  "use strict";
  const dcd = globalThis.dcd;

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const field = (text, control) =>
    element("label", { class: "dcd-live-field", for: control.id }, element("span", {}, text), control);

  // A list of choices; `options` are values, or pairs of a value and its text.
  function select(id, options, changed) {
    const made = element("select", { id });
    const fill = listed => made.replaceChildren(...listed.map(option => {
      const [value, text = value] = [option].flat();
      return element("option", { value }, String(text));
    }));
    fill(options);
    made.addEventListener("change", () => changed(made.value));
    return Object.assign(made, { fill });
  }

  function slider(id, [least, most, step], changed) {
    const made = element("input", { id, type: "range", min: least, max: most, step });
    made.addEventListener("input", () => changed(Number(made.value)));
    return made;
  }

  function button(text, pressed) {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", pressed);
    return made;
  }

  // Three digits that count, also where the last is a zero: 0.0120, 1.20.
  const digits = value => (value === 0 ? "0" : value.toPrecision(3));
  const percent = share => `${(100 * share).toFixed(share >= 0.0005 && share < 0.0995 ? 1 : 0)} %`;
  const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

  dcd.controls = { button, counted, digits, element, field, percent, select, slider };
})();
