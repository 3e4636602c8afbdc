// Slices of volumes, drawn on a canvas: grey or signed values, an outline, a crosshair, a frame.
// A volume is { size: [i, j, k], values } in C order; i runs from one side to the other, j from back
// to front, k from below to above. Places are voxels of that volume and may lie between its voxels.
(() => {
  "use strict";
  const dcd = globalThis.dcd;

  // The axis that a plane cuts, and those along its pictures: rightwards, and upwards.
  const PLANES = {
    axial: { axis: 2, right: 0, up: 1 },
    coronal: { axis: 1, right: 0, up: 2 },
    sagittal: { axis: 0, right: 1, up: 2 },
  };
  const LONGEST = 320; // pixels of the longer side of a canvas

  const grey = value => [255 * value, 255 * value, 255 * value];
  // From blue (-1) over white (0) to red (1), as the figures of the book have it.
  const STOPS = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]];
  function signed(value) {
    const at = 2 * (Math.min(1, Math.max(-1, value)) + 1), i = Math.min(3, Math.floor(at));
    return STOPS[i].map((low, c) => low + (at - i) * (STOPS[i + 1][c] - low));
  }

  // Where the picture has its pixel for a place of the volume, and the way back.
  function geometry(size, plane, longest = LONGEST) {
    const { axis, right, up } = PLANES[plane], width = size[right], height = size[up];
    const scale = longest / Math.max(width, height);
    return {
      axis, right, up, width, height, scale,
      x: place => place[right] * scale,
      y: place => (height - place[up]) * scale,
      place: (x, y, at) => {
        const found = [...at];
        found[right] = (x / scale);
        found[up] = height - y / scale;
        return found;
      },
    };
  }

  // The offset of a voxel, from those along the axis, rightwards and upwards.
  function reader(size, { axis, right, up }) {
    const strides = [size[1] * size[2], size[2], 1];
    return (a, r, u) => a * strides[axis] + r * strides[right] + u * strides[up];
  }

  function picture(volume, plane, index, colour) {
    const view = geometry(volume.size, plane), offset = reader(volume.size, view);
    const small = new OffscreenCanvas(view.width, view.height), context = small.getContext("2d");
    const pixels = context.createImageData(view.width, view.height);
    for (let u = 0, at = 0; u < view.height; u++) for (let r = 0; r < view.width; r++, at += 4) {
      const value = volume.values[offset(index, r, view.height - 1 - u)];
      pixels.data.set([...colour(value), 255], at);
    }
    context.putImageData(pixels, 0, 0);
    return small;
  }

  // The edges between voxels inside and outside of a mask, in one slice.
  function edges(mask, plane, index) {
    const view = geometry(mask.size, plane), offset = reader(mask.size, view);
    const inside = (r, u) => r >= 0 && u >= 0 && r < view.width && u < view.height
      && mask.values[offset(index, r, u)] > 0;
    const path = [];
    for (let u = 0; u <= view.height; u++) for (let r = 0; r <= view.width; r++) {
      if (inside(r, u) !== inside(r - 1, u)) path.push([r, u, r, u + 1]);
      if (inside(r, u) !== inside(r, u - 1)) path.push([r, u, r + 1, u]);
    }
    return path;
  }

  function line(context, path, colour, width) {
    // A dark line below a bright one is seen on any ground.
    for (const [style, thick] of [["rgba(0, 0, 0, 0.75)", width + 2], [colour, width]]) {
      context.strokeStyle = style;
      context.lineWidth = thick;
      context.stroke(path);
    }
  }

  // Draw one plane of `volume` at `at`. `mask` is outlined; it may have another grid of the same
  // extent. `frame` is { start, size }, a box in voxels.
  function draw(canvas, volume, plane, at, { colour = grey, mask, frame, crosshair = true } = {}) {
    const view = geometry(volume.size, plane), { axis, scale } = view;
    [canvas.width, canvas.height] = [view.width * scale, view.height * scale];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false; // voxels are seen as they are
    const index = Math.min(volume.size[axis] - 1, Math.floor(at[axis]));
    context.drawImage(picture(volume, plane, index, colour), 0, 0, canvas.width, canvas.height);
    if (mask) {
      const finer = mask.size[axis] / volume.size[axis], path = new Path2D(), step = scale / finer;
      const cut = Math.min(mask.size[axis] - 1, Math.floor(at[axis] * finer));
      for (const [r, u, r1, u1] of edges(mask, plane, cut)) {
        path.moveTo(r * step, canvas.height - u * step);
        path.lineTo(r1 * step, canvas.height - u1 * step);
      }
      line(context, path, "#f0e442", 2);
    }
    if (frame) {
      const corner = frame.start.map((start, i) => start + (i === view.up ? frame.size[i] : 0)), path = new Path2D();
      path.rect(view.x(corner), view.y(corner), frame.size[view.right] * scale, frame.size[view.up] * scale);
      line(context, path, "#56b4e9", 2);
    }
    if (crosshair) {
      const path = new Path2D(), [x, y] = [view.x(at), view.y(at)];
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { // a gap leaves the place itself free
        path.moveTo(x + 12 * dx, y + 12 * dy);
        path.lineTo(x + 2 * LONGEST * dx, y + 2 * LONGEST * dy);
      }
      context.globalAlpha = 0.55;
      line(context, path, "#e69f00", 1);
      context.globalAlpha = 1;
    }
  }

  // Call `moved` with the place where the reader points: a click, a tap, or a drag of the mouse.
  function pointed(canvas, plane, size, moved) {
    const tell = event => {
      const box = canvas.getBoundingClientRect(), { width, height, scale, place } = geometry(size, plane);
      const fraction = (offset, whole) => Math.min(0.999, Math.max(0, offset / whole));
      moved(found => place(
        fraction(event.clientX - box.left, box.width) * width * scale,
        fraction(event.clientY - box.top, box.height) * height * scale, found));
    };
    canvas.addEventListener("click", tell);
    canvas.addEventListener("pointermove", event => {
      if (event.pointerType === "mouse" && event.buttons === 1) tell(event);
    });
  }

  // The value that all but a half per cent of a volume stay below, in size; 1 where all are zero.
  function top(values) {
    const sizes = Float64Array.from(values, Math.abs).sort();
    return sizes[Math.floor(0.995 * (sizes.length - 1))] || 1;
  }

  dcd.slices = { PLANES, draw, geometry, grey, pointed, signed, top };
})();
