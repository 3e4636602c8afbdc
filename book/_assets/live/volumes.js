// Volumes in three linked planes and in 3D, by NiiVue (Hanayik et al., github.com/niivue/niivue). A
// case is a channel, and over it one volume of masks in which each mask is a bit.
(() => {
  "use strict";
  const dcd = globalThis.dcd;
  // Names of views, and NiiVue's numbers for them.
  const VIEWS = { all: 3, axial: 0, coronal: 1, sagittal: 2, "3D": 4 };
  // Okabe and Ito, Color Universal Design, 2008.
  const COLOURS = {
    marked: [230, 159, 0], found: [0, 158, 115], missed: [213, 94, 0], added: [86, 180, 233],
  };
  const KEYS = {
    ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };
  const OPTIONS = {
    dragAndDropEnabled: false, // the page has its own cases
    scrollRequiresFocus: true, // else a wheel that scrolls the page is caught
    dragMode: 0, // no other contrast by accident
    multiplanarShowRender: 1, multiplanarLayout: 2,
    show3Dcrosshair: true, crosshairColor: [1, 1, 0.3, 0.9], crosshairWidth: 0.3, crosshairGap: 5,
    fontColor: [0.85, 0.85, 0.85, 1], loadingText: "", logLevel: "error",
  };
  const TILT = 15; // degrees, from which the head is seen in 3D

  const supported = () => Boolean(document.createElement("canvas").getContext("webgl2"));

  // What a voxel is under an overlay: a mask, or the errors of one against the truth.
  function kind(value, { mask, errors }, names) {
    const has = name => Boolean(value & (1 << names.indexOf(name)));
    if (mask === "none") return null;
    if (!errors) return has(mask) ? "marked" : null;
    if (has("truth")) return has(mask) ? "found" : "missed";
    return has(mask) ? "added" : null;
  }

  // A colour for each of the values that a volume of masks may have.
  function palette(overlay, names) {
    const kinds = Array.from({ length: 1 << names.length }, (_, value) => kind(value, overlay, names));
    const part = index => kinds.map(name => (name ? COLOURS[name][index] : 0));
    return { R: part(0), G: part(1), B: part(2), A: kinds.map(name => (name ? 255 : 0)) };
  }

  // `moved` is told the voxel of the crosshair, `turned` the angle of the view in 3D.
  async function open(canvas, { moved, turned, failed }) {
    const { Niivue, NVImage } = globalThis.niivue;
    const viewer = new Niivue(OPTIONS);
    await viewer.attachToCanvas(canvas, true);
    let masks, painted;
    const at = () => Array.from(viewer.frac2vox(viewer.scene.crosshairPos), Math.round);
    viewer.onLocationChange = () => moved(at());
    viewer.onAzimuthElevationChange = azimuth => turned(Math.round(azimuth + 360) % 360);
    canvas.addEventListener("webglcontextlost", () => failed(new Error("the graphics of this browser stopped")));

    const image = (file, name, colormap) => NVImage.loadFromBase64(
      { base64: file, name: `${name}.nii.gz`, colormap, cal_min: 0, cal_max: 255 });

    // Reading takes a while, showing does not: what was asked for later is never shown earlier.
    const read = (one, channel) => Promise.all(
      [image(one.channels[channel], channel, "gray"), image(one.masks.file, "masks", "gray")]);

    function show([base, over]) {
      [masks, painted] = [over, null];
      [viewer.volumes, viewer.back, viewer.overlays] = [[base, over], base, [over]];
    }

    // Everything at once, since NiiVue draws after each of its own calls, and 3D takes its time.
    function draw({ overlay, names, view, turn, voxel }) {
      viewer.opts.sliceType = VIEWS[view];
      [viewer.scene.renderAzimuth, viewer.scene.renderElevation] = [turn, TILT];
      viewer.scene.crosshairPos = viewer.vox2frac(voxel);
      const key = JSON.stringify(overlay);
      if (key === painted) return viewer.drawScene();
      painted = key;
      masks.setColormapLabel(palette(overlay, names));
      return viewer.updateGLVolume();
    }

    // NiiVue's own keys change what the controls would not show; these are the page's.
    const keyed = event => {
      event.stopPropagation();
      const step = KEYS[event.key];
      if (!step || event.type !== "keydown") return;
      event.preventDefault();
      const { renderAzimuth, renderElevation } = viewer.scene;
      if (viewer.opts.sliceType === VIEWS["3D"])
        viewer.setRenderAzimuthElevation(renderAzimuth + 5 * step[0], renderElevation + 5 * step[1]);
      else viewer.moveCrosshairInVox(...step);
    };
    // NiiVue waits whether a second finger comes, and forgets a tap that ends before.
    let tapped = null;
    canvas.addEventListener("touchstart", ({ touches }) => {
      tapped = touches.length === 1 ? [touches[0].clientX, touches[0].clientY] : null;
    }, { passive: true });
    canvas.addEventListener("touchmove", () => { tapped = null; }, { passive: true });
    canvas.addEventListener("touchend", () => {
      const { left, top } = canvas.getBoundingClientRect();
      if (tapped) viewer.mouseClick(tapped[0] - left, tapped[1] - top);
      tapped = null;
    }, { passive: true });
    for (const type of ["keydown", "keyup"]) canvas.parentElement.addEventListener(type, keyed, true);

    return { draw, read, show, value: voxel => masks.getValue(...voxel), viewer };
  }

  dcd.volumes = { COLOURS, VIEWS, kind, open, palette, supported };
})();
