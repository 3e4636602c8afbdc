"""Figures from tiny arrays: orientation, scale, words and units, colours, no state left behind."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dcd_core.types import BRATS, ISLES, Case, ContractError
from dcd_core.wavelet import BANDS
from dcd_lab import plots, stats


def case(orientation: str = "RAS", spacing_mm=(2.0, 1.0, 4.0)) -> Case:
    """A brain (x, y, z) of 12 x 20 x 8 voxels, bright on the right, with one lesion at x = 8."""
    from nibabel.orientations import (
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    image = np.zeros((3, 12, 20, 8), np.float32)
    image[:, 1:11, 1:19, 1:7] = 100
    image[:, 6:11, 1:19, 1:7] += 50  # right
    image[:, 1:11, 10:19, 1:7] += 20  # anterior
    image[:, 1:11, 1:19, 4:7] += 5  # superior
    label = np.zeros((12, 20, 8), np.uint8)
    label[8, 12:16, 2:5] = 1
    label[7, 13, 3] = 1
    affine = np.diag([*spacing_mm, 1.0])
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    order = np.argsort(turn[:, 0])
    return Case(
        "sub-strokecase0001",
        np.stack([apply_orientation(channel, turn) for channel in image]),
        apply_orientation(label, turn),
        tuple(np.array(spacing_mm)[order].tolist()),
        affine @ inv_ornt_aff(turn, label.shape),
    )


def scores(seeds: int = 3, methods=("none", "MSE", "DCD")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"method": m, "seed": s, "case": c, "dice": d, "volume_ml": 10.0 ** rng.normal()}
        for m in methods
        for s in range(seeds)
        for c, d in enumerate(rng.uniform(0.3, 0.9, 5))
    ]
    return pd.DataFrame(rows)


def training() -> pd.DataFrame:
    rows = [
        {"method": m, "seed": s, "epoch": e, "dice": 0.1 * e + s if e % 2 == 0 else np.nan}
        for m in ("none", "DCD")
        for s in range(2)
        for e in range(6)
    ]
    return pd.DataFrame(rows)


def grown(x: str) -> pd.DataFrame:
    """Times that grow with the square of x: half as fast for the second loss."""
    rows = [
        {x: n, "loss": loss, "time_ms": k * n**2, "low_ms": k * n**2 / 2, "high_ms": 2 * k * n**2}
        for k, loss in ((1.0, "orthonormal"), (2.0, "released"))
        for n in (1, 2, 4)
    ]
    return pd.DataFrame(rows)


def deployed() -> pd.DataFrame:
    rows = [("teacher", "float32", 80.0, 0.7), ("teacher", "int8", 20.0, 0.6)]
    rows += [("student", "float32", 10.0, 0.5), ("student", "int8", np.nan, 0.5)]
    return pd.DataFrame(rows, columns=["method", "precision", "latency_ms", "dice"])


def comparisons(seeds: int = 3) -> list[stats.Comparison]:
    table = scores(seeds)
    return [stats.compare(table, "dice", m, "none", resamples=50) for m in ("MSE", "DCD")]


def bands_of(seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed).standard_normal((8, 5, 6, 4))
        * np.arange(8, 0, -1)[:, None, None, None]
    )


def maps(grids=((12, 8, 4), (6, 4, 2)), networks=("teacher", "DCD")) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return {name: [rng.standard_normal(shape) for shape in grids] for name in networks}


PATCH = np.arange(12 * 8 * 4, dtype=float).reshape(12, 8, 4)
LESION = np.zeros((12, 8, 4), np.uint8)
LESION[2:5, 1:4, 3] = 1
LESION[2, 1, 1] = 1


def by_stage() -> pd.DataFrame:
    rows = [
        {"stage": s, "network": n, "patch": p, "part": part, "share": 0.01 * p + s}
        for n in ("teacher", "DCD")
        for s in range(3)
        for part in ("coarse", "detail", "ddd")
        for p in range(11)
    ]
    return pd.DataFrame(rows)


C = case()
FIGURES = {
    "slices": lambda: plots.slices(C, ISLES, title="A case"),
    "unlabelled": lambda: plots.slices(C._replace(label=None), ISLES, channels=["adc"]),
    "compare_cases": lambda: plots.compare_cases([C, case("LPS")], ISLES, titles=["one", "two"]),
    "segmentation": lambda: plots.segmentation(C, {"DCD": np.roll(C.label, 1, 1)}, ISLES),
    "zoomed": lambda: plots.segmentation(
        C, dict.fromkeys("abcde", C.label), ISLES, channel="flair", plane="coronal", zoom=True
    ),
    "bands": lambda: plots.bands(bands_of(), marked=BANDS[1:7]),
    "curves": lambda: plots.curves(training(), "epoch", "dice"),
    "growth": lambda: plots.growth(grown("voxels"), grown("levels"), title="Growth"),
    "seeds": lambda: plots.seeds(scores(), "dice"),
    "forest": lambda: plots.forest(comparisons()),
    "one seed": lambda: plots.forest(comparisons(1)),
    "by_volume": lambda: plots.by_volume(scores()),
    "features": lambda: plots.features(PATCH, maps(), label=LESION),
    "gallery": lambda: plots.gallery(PATCH, {"a": PATCH, "b": -PATCH}, label=LESION),
    "no label": lambda: plots.features(PATCH, maps(), title="Features"),
    "subbands": lambda: plots.subbands({"one": bands_of(), "two": bands_of(1)}, marked=["aad"]),
    "by_stage": lambda: plots.by_stage(by_stage(), "share", "network", label="share (0–1)"),
    "panels": lambda: plots.by_stage(
        by_stage(), "share", "network", "part", label="share (0–1)", log_y=True, title="Shares"
    ),
    "tradeoff": lambda: plots.tradeoff(deployed(), "latency_ms", "dice", title="Cost"),
    "schedule": lambda: plots.schedule({"ISLES": np.linspace(0, 0.05, 20)}, marks={"ramp": 5}),
    "matrix": lambda: plots.matrix(
        np.array([[0.1, np.nan], [0.3, 0.4]]), ["haar", "db4"], ["1", "2"], label="Dice (0–1)"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_the_same_twice_and_leaves_no_state(name):
    settings = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] == pytest.approx(7.2)
    assert 1 < figure.get_size_inches()[1] < 14
    first = figure._repr_png_()
    assert first.startswith(b"\x89PNG")
    assert first == FIGURES[name]()._repr_png_()
    assert not _pylab_helpers.Gcf.figs
    assert dict(matplotlib.rcParams) == settings


def test_no_module_of_plots_imports_pyplot():
    sources = list(Path(plots.__file__).parent.glob("*.py"))
    assert len(sources) > 3
    for source in sources:
        nodes = list(ast.walk(ast.parse(source.read_text())))
        names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not any("pyplot" in name or "pylab" in name for name in names)


def test_settings_of_the_reader_do_not_change_the_figure():
    expected = plots.seeds(scores(), "dice")._repr_png_()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "axes.facecolor": "red"}):
        assert plots.seeds(scores(), "dice")._repr_png_() == expected


@pytest.mark.parametrize("orientation", ["LAS", "LPS", "PIR", "SAL"])
def test_storage_order_does_not_change_the_figure(orientation):
    turned = case(orientation)
    assert turned.image.shape != C.image.shape or orientation in ("LAS", "LPS")
    expected = plots.slices(C, ISLES)._repr_png_()
    assert plots.slices(turned, ISLES)._repr_png_() == expected
    zoomed = [
        plots.segmentation(x, {"DCD": x.label}, ISLES, plane="sagittal", zoom=True)._repr_png_()
        for x in (C, turned)
    ]
    assert zoomed[0] == zoomed[1]


def test_panels_are_radiological_and_in_millimetres():
    axial, coronal, sagittal = plots.slices(C, ISLES, channels=["dwi"]).axes
    left_right = {"axial": axial, "coronal": coronal}
    for axes in left_right.values():
        shown = axes.images[0].get_array()
        assert shown[:, 1:5].mean() > shown[:, -5:-1].mean()  # the bright right side, on the left
        assert "R" in [text.get_text() for text in axes.texts]
    assert axial.images[0].get_array()[-9:-1].mean() > axial.images[0].get_array()[1:9].mean()
    shown = sagittal.images[0].get_array()
    assert shown[:, 1:9].mean() > shown[:, -9:-1].mean()  # anterior on the left
    assert coronal.images[0].get_array()[4:7].mean() > coronal.images[0].get_array()[1:4].mean()
    # 12 x 20 x 8 voxels of 2 x 1 x 4 mm.
    assert axial.images[0].get_extent() == [-12, 12, -10, 10]
    assert coronal.images[0].get_extent() == [-12, 12, -16, 16]
    assert sagittal.images[0].get_extent() == [-10, 10, -16, 16]
    assert {axes.get_aspect() for axes in (axial, coronal, sagittal)} == {1.0}


def outlined(axes) -> bool:
    return (
        any(len(path.vertices) for path in axes.collections[0].get_paths())
        if axes.collections
        else False
    )


def test_slices_go_where_the_label_is():
    labelled = plots.slices(C, ISLES, channels=["dwi"])
    assert all(outlined(axes) for axes in labelled.axes)
    elsewhere = plots.slices(C, ISLES, channels=["dwi"], center=(2, 3, 6))
    assert not any(outlined(axes) for axes in elsewhere.axes)
    same = plots.slices(case("LPS"), ISLES, channels=["dwi"], center=(9, 16, 6))
    assert same._repr_png_() == elsewhere._repr_png_()


def test_contours_enclose_the_label_in_millimetres():
    (axes,) = plots.segmentation(C, {}, ISLES, plane="sagittal").axes
    points = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    # y 12..15 of 20 x 1 mm, mirrored, so 2..6 mm left of the middle; z 2..4 of 8 x 4 mm.
    np.testing.assert_allclose([points[:, 0].min(), points[:, 0].max()], [-6, -2], atol=0.51)
    np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [-8, 4], atol=2.01)


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_labels_are_named():
    image = np.concatenate([C.image, C.image[:1]])
    label = C.label.copy()
    label[3, 5:9, 2:5] = 4
    assert legend_of(plots.slices(C, ISLES)) == ["lesion"]
    glioma = plots.segmentation(C._replace(image=image, label=label), {"DCD": label * 0 + 3}, BRATS)
    assert legend_of(glioma) == ["NETC", "ET", "RC", "truth"]
    assert [axes.get_title(loc="left") for axes in glioma.axes] == ["truth", "DCD"]


def test_bands_show_their_share_of_the_energy():
    values = bands_of()
    figure = plots.bands(values, marked=["aad"])
    titles = [axes.get_title(loc="left").split() for axes in figure.axes[:8]]
    assert tuple(title[0] for title in titles) == BANDS
    share = 100 * (values**2).sum(axis=(1, 2, 3)) / (values**2).sum()
    np.testing.assert_allclose([float(title[1]) for title in titles], share, atol=0.051)
    frames = [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in figure.axes[:8]]
    assert [frame == plots.PALETTE[1] for frame in frames] == [False, True] + 6 * [False]
    scales = {axes.images[0].get_clim() for axes in figure.axes[1:8]}
    assert len(scales) == 1
    low, high = scales.pop()
    assert low == -high


def test_bands_takes_tensors():
    import torch

    tensor = torch.from_numpy(bands_of())[None, None].float().requires_grad_()
    assert plots.bands(tensor, index=1).axes[0].get_title(loc="left").startswith("aaa")
    assert plots.bands(tensor * 0).axes[0].get_title(loc="left").endswith("0 %")


def test_features_show_one_slice_of_every_network_and_stage():
    found = maps()
    panels = np.array(plots.features(PATCH, found, label=LESION).axes).reshape(3, 2)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["image", "teacher", "DCD"]
    assert [axes.get_title(loc="left") for axes in panels[0]] == [
        "stage 0: 12×8×4",
        "stage 1: 6×4×2",
    ]
    for row, name in enumerate(found, start=1):
        for column, at in enumerate((3, 1)):  # slice 3 of 4 holds most of the lesion; 1 of 2
            shown = panels[row, column].images[0].get_array()
            np.testing.assert_array_equal(shown, found[name][column][:, :, at].T)
    # 2 x 2 x 2 voxels of the image make one of stage 1.
    assert panels[0, 1].images[0].get_array()[0, 0] == PATCH[:2, :2, 2:].mean()
    for column in panels.T:
        scales = [axes.images[0].get_clim() for axes in column]
        assert scales[0] != scales[1] == scales[2]
        assert all(axes.images[0].get_extent() == [0, 12, 0, 8] for axes in column)
        points = [path.vertices for path in column[0].collections[0].get_paths()]
        x, y = np.concatenate(points).T
        np.testing.assert_allclose([x.min(), x.max(), y.min(), y.max()], [2, 5, 1, 4], atol=0.01)


def test_a_gallery_shows_one_slice_of_every_map_on_its_own_scale():
    found = {"one": PATCH, "ten": 10 * PATCH, "three": 3 * PATCH}
    figure = plots.gallery(PATCH, found, label=LESION, columns=3)
    panels = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["image", "one", "ten", "three"]
    for axes, volume in zip(panels[1:], found.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), volume[:, :, 3].T)
    low, high = panels[1].images[0].get_clim()
    assert panels[2].images[0].get_clim() == pytest.approx((10 * low, 10 * high))


def test_subbands_share_one_slice_and_one_scale():
    one, two = bands_of(), 10 * bands_of(1)
    one[1:, :, :, 2] *= 5
    one[0, :, :, 1] *= 50  # the coarse band does not choose the slice
    figure = plots.subbands({"one": one, "two": two}, marked=["aad"])
    panels = np.array(figure.axes).reshape(2, 8)
    assert tuple(axes.get_title(loc="center") for axes in panels[0]) == BANDS
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["one", "two"]
    for values, row in zip((one, two), panels, strict=True):
        share = 100 * np.square(values).sum((1, 2, 3)) / np.square(values).sum()
        written = [float(axes.get_xlabel().removesuffix(" %")) for axes in row]
        np.testing.assert_allclose(written, share, rtol=0.006)
        for plate, axes in zip(values, row, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), plate[:, :, 2].T)
    assert len({axes.images[0].get_clim() for axes in panels[:, 1:].ravel()}) == 1
    coarse = tuple(np.quantile(one[0, :, :, 2], [0.01, 0.99]))
    assert {axes.images[0].get_clim() for axes in panels[:, 0]} == {coarse}
    frames = [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in panels[1]]
    assert [frame == plots.PALETTE[1] for frame in frames] == [False, True] + 6 * [False]


def test_by_stage_shows_means_and_percentiles():
    table = by_stage()
    table.loc[table.network == "DCD", "share"] += 1
    table.loc[(table.network == "DCD") & (table.stage == 2), "share"] = np.nan
    figure = plots.by_stage(table, "share", "network", "part", label="share (0–1)")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["coarse", "detail", "ddd"]
    assert figure.get_supylabel() == "share (0–1)"
    assert legend_of(figure) == ["teacher", "DCD"]
    means = [line.get_ydata() for line in shown[0].lines if line.get_marker() != "None"]
    np.testing.assert_allclose(means[0], [0.05, 1.05, 2.05])
    np.testing.assert_allclose(means[1], [1.05, 2.05])
    for bars, start in zip(shown[0].collections, (0, 1), strict=True):
        low, high = bars.get_segments()[1][:, 1]
        assert (low, high) == pytest.approx((start + 1.01, start + 1.09))
    markers = {line.get_marker() for line in shown[0].lines} - {"None"}
    assert len(markers) == 2


def test_curves_draw_every_seed_and_skip_gaps():
    (axes,) = plots.curves(training(), "epoch", "dice").axes
    assert len(axes.lines) == 4
    assert all(list(line.get_xdata()) == [0, 2, 4] for line in axes.lines)
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "Dice (0–1)"
    figure = plots.curves(training(), "epoch", "dice")
    assert legend_of(figure) == ["none", "DCD"]


def test_growth_compares_every_loss_with_a_line_through_its_largest_volume():
    figure = plots.growth(grown("voxels").sample(frac=1, random_state=0), grown("levels"))
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("voxels", "levels")
    assert left.get_ylabel() == right.get_ylabel() == "time (ms)"
    assert left.get_xscale() == left.get_yscale() == "log"
    assert right.get_ylim()[0] == 0
    times = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert times == {"orthonormal": [1, 4, 16], "released": [2, 8, 32]}
    dotted = [list(line.get_ydata()) for line in left.lines if line.get_linestyle() == ":"]
    assert sorted(dotted) == [[4, 8, 16], [8, 16, 32]]
    assert sorted(legend_of(figure)) == ["linear", "orthonormal", "released"]
    assert len(left.collections) == 2  # a shade from low to high for each


def test_seeds_are_dots_joined_across_methods():
    table = scores()
    (axes,) = plots.seeds(table, "dice").axes
    means = table.groupby(["method", "seed"])["dice"].mean()
    dots = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 3])
    expected = np.concatenate([means[m] for m in ("none", "MSE", "DCD")])
    np.testing.assert_allclose(dots[:, 0], expected)
    np.testing.assert_allclose(
        axes.lines[1].get_xdata(), [means[m][1] for m in ("none", "MSE", "DCD")]
    )
    assert [text.get_text() for text in axes.get_yticklabels()] == ["none", "MSE", "DCD"]
    assert axes.yaxis_inverted()


def test_forest_shows_intervals_and_what_is_detectable():
    found = comparisons()
    (axes,) = plots.forest(found).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["MSE − none", "DCD − none"]
    assert axes.get_xlabel() == "difference in Dice (0–1)"
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(widths, [2 * c.detectable for c in found])
    intervals = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert [found[0].low, found[0].high] in intervals
    low, high = axes.get_xlim()
    assert low < -max(c.detectable for c in found) < max(c.detectable for c in found) < high


def test_forest_says_when_one_seed_is_no_evidence():
    figure = plots.forest(comparisons(1))
    (axes,) = figure.axes
    assert any("no evidence" in text for text in legend_of(figure))
    assert not any("no evidence" in text for text in legend_of(plots.forest(comparisons())))
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in dots} == {"white"}
    assert not axes.patches


def test_by_volume_is_logarithmic_and_leaves_zero_out():
    table = scores()
    table.loc[0, "volume_ml"] = 0.0
    figure = plots.by_volume(table)
    none = figure.axes[0]
    assert none.get_xscale() == "log"
    assert len(none.collections[1].get_offsets()) == 14
    assert figure.get_supxlabel() == "volume (ml)"
    assert figure.get_supylabel() == "Dice (0–1)"


def test_tradeoff_joins_the_variants_of_a_network_on_a_log_axis():
    figure = plots.tradeoff(deployed(), "latency_ms", "dice")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "latency (ms)")
    joined = [line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
    assert joined == [[80.0, 20.0], [10.0]]
    circles = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    squares = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "s"]
    assert (circles, squares) == ([[80.0], [10.0]], [[20.0], []])
    assert legend_of(figure) == ["teacher", "student", "float32", "int8"]


def test_schedule_marks_epochs():
    weights = np.linspace(0, 0.05, 20)
    (axes,) = plots.schedule({"ISLES": weights}, marks={"ramp starts": 5}).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), weights)
    assert axes.lines[1].get_xdata()[0] == 5
    assert axes.texts[0].get_text() == "ramp starts"


def test_matrix_writes_its_numbers():
    values = np.array([[0.1, np.nan], [-0.3, 0.4]])
    figure = plots.matrix(values, ["a", "b"], ["c", "d"], label="Dice (0–1)", diverging=True)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.10", "–", "−0.30", "0.40"]
    assert figure.axes[0].images[0].get_clim() == (-0.4, 0.4)
    assert figure.axes[1].get_ylabel() == "Dice (0–1)"


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("dice", "Dice (0–1)"),
        ("hd95_mm", "HD95 (mm)"),
        ("lesion_hd95_mm", "lesion-wise HD95 (mm)"),
        ("nsd_1mm", "NSD at 1 mm (0–1)"),
        ("lesion_nsd_05mm", "lesion-wise NSD at 0.5 mm (0–1)"),
        ("volume_true_ml", "volume true (ml)"),
        ("latency_ms", "latency (ms)"),
        ("memory_mib", "memory (MiB)"),
        ("minutes", "time (min)"),
        ("segmentation", "segmentation loss (no unit)"),
        ("kd_loss", "KD loss"),
    ],
)
def test_columns_become_labels_with_units(column, label):
    assert plots.axis_label(column) == label


# Machado, Oliveira and Fernandes, IEEE TVCG, 2009: complete deficiency, on linear RGB.
VISION = {
    "full": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def lab(color: str, vision) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(palette, vision) -> float:
    points = [lab(color, vision) for color in palette]
    return min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i])


def test_the_palette_is_okabe_and_ito():
    okabe_ito = ["000000", "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7"]
    assert sorted(plots.PALETTE) == sorted(f"#{value}" for value in okabe_ito)
    assert set(plots.LABEL_COLORS) < set(plots.PALETTE)
    assert plots.colors(["b", "a", "b"]) == {"b": plots.PALETTE[0], "a": plots.PALETTE[1]}


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_for_colour_blind_readers(vision):
    assert closest(plots.PALETTE, VISION[vision]) > 12
    assert closest(plots.LABEL_COLORS[:4], VISION[vision]) > 25


def test_that_this_test_sees_red_and_green():
    pair = ("#6E8B00", "#B36A00")
    assert closest(pair, VISION["full"]) > 40
    assert closest(pair, VISION["no green cones"]) < 20


BROKEN = {
    "unknown channel": (lambda: plots.slices(C, ISLES, channels=["t1"]), "'dwi', 'adc', 'flair'"),
    "unknown plane": (lambda: plots.compare_cases([C], ISLES, plane="oblique"), "coronal"),
    "other grid": (lambda: plots.segmentation(C, {"DCD": C.label[1:]}, ISLES), "DCD"),
    "many bands": (lambda: plots.bands(np.ones((2, 8, 3, 3, 3))), "pick one"),
    "no column": (lambda: plots.seeds(scores(), "hd95_mm"), "hd95_mm"),
    "other stages": (
        lambda: plots.features(PATCH, {**maps(), "b": maps()["DCD"][:1]}),
        "stages of b",
    ),
    "odd grid": (lambda: plots.features(PATCH, maps([(5, 4, 2)])), r"divisor of \(12, 8, 4\)"),
    "no stage": (lambda: plots.by_stage(scores(), "dice", "method", label=""), "'stage'"),
    "no precision": (lambda: plots.tradeoff(scores(), "volume_ml", "dice"), "'precision'"),
    "no levels": (lambda: plots.growth(grown("voxels"), grown("voxels")), "levels"),
    "no comparison": (lambda: plots.forest([]), "none"),
    "two metrics": (
        lambda: plots.forest([comparisons()[0], comparisons()[0]._replace(metric="hd95_mm")]),
        "one metric",
    ),
    "names do not fit": (lambda: plots.matrix(np.ones((2, 2)), ["a"], ["b"], label=""), "one name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_say_what_to_do(name):
    call, words = BROKEN[name]
    with pytest.raises(ContractError, match=words):
        call()


def test_a_page_of_slices_keeps_its_contours_in_the_notebook():
    """Its PNG has a palette; one chosen by frequency once turned the thin contours grey."""
    image = Image.open(io.BytesIO(plots.slices(case(), ISLES)._repr_png_()))
    assert image.mode == "P"
    shown = {color for _, color in image.convert("RGB").getcolors(4096)}
    assert tuple(bytes.fromhex(plots.LABEL_COLORS[0][1:])) in shown
