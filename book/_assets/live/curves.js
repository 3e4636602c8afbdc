// Curves over one axis, drawn as SVG: lines with their names in a legend, and a mark where one is.
(() => {
  "use strict";
  const dcd = globalThis.dcd;

  function drawn(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Steps of 1, 2 or 5 times a power of ten, at most `most` of them.
  function ticks(top, most) {
    const rough = top / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(6)));
  }

  // `lines`: by name, an array of y at each of `xs`; `at`: where the mark is; `label`: of the x axis.
  function chart(svg, xs, lines, at, label) {
    const width = Math.max(260, svg.clientWidth), height = 240;
    const [left, right, above, below] = [38, 12, 10, 42];
    const top = Math.max(1, ...Object.values(lines).flat()) * 1.04, last = xs[xs.length - 1];
    const x = value => left + (width - left - right) * value / last;
    const y = value => height - below - (height - above - below) * value / top;
    const rule = (x1, y1, x2, y2, name) => drawn("line", { x1, y1, x2, y2, class: name });
    const text = (where, words, anchor) => drawn("text", { ...where, "text-anchor": anchor }, String(words));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(
      ...ticks(top, 5).flatMap(value => [
        rule(left, y(value), width - right, y(value), "dcd-curve-grid"),
        text({ x: left - 6, y: y(value) + 4 }, value, "end")]),
      ...ticks(last, 6).map(value => text({ x: x(value), y: height - below + 18 }, value, "middle")),
      text({ x: (left + width - right) / 2, y: height - 6 }, label, "middle"),
      ...Object.entries(lines).map(([name, values]) => drawn("polyline", {
        class: `dcd-curve dcd-curve-${name}`, points: values.map((value, i) => `${x(xs[i])},${y(value)}`).join(" "),
      })),
      rule(x(at), above, x(at), height - below, "dcd-curve-mark"));
  }

  dcd.curves = { chart };
})();
