"""Figures from tiny arrays: orientation, scale, words and units, colours, no state left behind."""

import io
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.colors import to_hex
from PIL import Image

from dcd_core.types import Case, ContractError
from dcd_core.wavelet import BANDS
from dcd_lab import plots, stats
from dcd_lab.tasks import BRATS, ISLES


def case(orientation: str = "RAS", spacing_mm=(2.0, 1.0, 4.0)) -> Case:
    """A brain (x, y, z) of 12 x 20 x 8 voxels, bright on the right, with one lesion at x = 8."""
    from nibabel import orientations as nib

    image = np.zeros((3, 12, 20, 8), np.float32)
    image[:, 1:11, 1:19, 1:7] = 100
    image[:, 6:11, 1:19, 1:7] += 50  # right
    image[:, 1:11, 10:19, 1:7] += 20  # anterior
    image[:, 1:11, 1:19, 4:7] += 5  # superior
    label = np.zeros((12, 20, 8), np.uint8)
    label[8, 12:16, 2:5] = 1
    label[7, 13, 3] = 1
    affine = np.diag([*spacing_mm, 1.0])
    turn = nib.ornt_transform(nib.io_orientation(affine), nib.axcodes2ornt(orientation))
    order = np.argsort(turn[:, 0])
    return Case(
        "sub-strokecase0001",
        np.stack([nib.apply_orientation(channel, turn) for channel in image]),
        nib.apply_orientation(label, turn),
        tuple(np.array(spacing_mm)[order].tolist()),
        affine @ nib.inv_ornt_aff(turn, label.shape),
    )


def table(columns: str, *rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def comparisons(seeds: int = 3) -> list[stats.Comparison]:
    kept = SCORES[SCORES.seed < seeds]
    return [stats.compare(kept, "dice", m, "none", resamples=50) for m in ("MSE", "DCD")]


def maps(*grids: tuple[int, ...]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return {name: [rng.standard_normal(shape) for shape in grids] for name in ("teacher", "DCD")}


def grown(x: str) -> pd.DataFrame:
    """Times that grow with the square of x: half as fast for the second loss."""
    rows = [(n, f"{k} n²", k * n**2, k * n**2 / 2, 2 * k * n**2) for k in (1, 2) for n in (4, 1, 2)]
    return table(f"{x} loss time_ms low_ms high_ms", *rows)


RNG = np.random.default_rng(0)
C = case()
NAMES = ("none", "MSE", "DCD")
RUNS = [(name, seed, c) for name in NAMES for seed in range(3) for c in range(5)]
SCORES = table("method seed case", *RUNS).assign(
    dice=RNG.uniform(0.3, 0.9, len(RUNS)), volume_ml=10.0 ** RNG.normal(size=len(RUNS))
)
WIDE = 10.0 ** np.arange(-5, 6)
EPOCHS = [(m, s, e, 0.1 * e if e % 2 else np.nan) for m in NAMES for s in (0, 1) for e in range(6)]
TRAINING = table("method seed epoch dice", *EPOCHS)
DEPLOYED = table(
    "method precision latency_ms dice",
    ("teacher", "float32", 80.0, 0.7),
    ("teacher", "int8", 20.0, 0.6),
    ("student", "float32", 10.0, 0.5),
    ("student", "int8", np.nan, 0.5),
)
STAGES = table(
    "stage network part share",
    *((s, n, p, 0.01 * i + s) for s in range(3) for n in NAMES for p in "abc" for i in range(11)),
)
DETAILS = RNG.standard_normal((8, 5, 6, 4)) * np.arange(8, 0, -1)[:, None, None, None]
PATCH = np.arange(12 * 8 * 4, dtype=float).reshape(12, 8, 4)
MAPS = maps((12, 8, 4), (6, 4, 2))
LESION = np.zeros((12, 8, 4), np.uint8)
LESION[2:5, 1:4, 3] = 1
LESION[2, 1, 1] = 1
FIGURES = {
    "slices": lambda: plots.slices(C, ISLES, title="A case"),
    "unlabelled": lambda: plots.slices(C._replace(label=None), ISLES, channels=["adc"]),
    "elsewhere": lambda: plots.slices(C, ISLES, channels=["dwi"], center=(2, 3, 6)),
    "compare_cases": lambda: plots.compare_cases([C, case("LPS")], ISLES, titles=["one", "two"]),
    "cohort": lambda: plots.cohort([C, case("LPS"), C], ISLES, channel="adc", columns=2),
    "segmentation": lambda: plots.segmentation(C, {"DCD": np.roll(C.label, 1, 1)}, ISLES),
    "zoomed": lambda: plots.segmentation(
        C, dict.fromkeys("abcde", C.label), ISLES, channel="flair", plane="coronal", zoom=True
    ),
    "bands": lambda: plots.bands(torch.from_numpy(DETAILS * 0)[None, None].requires_grad_()),
    "curves": lambda: plots.curves(TRAINING, "epoch", "dice"),
    "growth": lambda: plots.growth(grown("voxels"), grown("levels"), title="Growth"),
    "seeds": lambda: plots.seeds(SCORES, "dice"),
    "forest": lambda: plots.forest(comparisons(), title="Forest"),
    "doses": lambda: plots.doses({"levels": {"3": None, "1": comparisons()[0]}}, title="Doses"),
    "by_volume": lambda: plots.by_volume(SCORES),
    "histogram": lambda: plots.histogram(SCORES, "volume_ml", edges=WIDE, marks={"1 ml": 1}),
    "features": lambda: plots.features(PATCH, MAPS, title="Features"),
    "gallery": lambda: plots.gallery(PATCH, {"a": PATCH, "b": -PATCH}, label=LESION, columns=2),
    "subbands": lambda: plots.subbands({"one": DETAILS, "two": 2 * DETAILS}, marked=["aad"]),
    "by_stage": lambda: plots.by_stage(STAGES, "share", "network", "part", label="share (0–1)"),
    "tradeoff": lambda: plots.tradeoff(DEPLOYED, "latency_ms", "dice", title="Cost"),
    "schedule": lambda: plots.schedule({"ISLES": np.linspace(0, 0.05, 20)}, marks={"ramp": 5}),
    "matrix": lambda: plots.matrix(np.eye(2), ["haar", "db4"], ["1", "2"], label="Dice (0–1)"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_keeps_its_words_apart_and_leaves_no_state(name):
    settings = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert figure.get_size_inches()[0] == pytest.approx(7.2)
    assert 1 < figure.get_size_inches()[1] < 14
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert not _pylab_helpers.Gcf.figs
    assert dict(matplotlib.rcParams) == settings
    panels = [axes.get_window_extent() for axes in figure.axes]
    for around in (*figure.legends, *figure.texts):
        assert not any(panel.overlaps(around.get_window_extent()) for panel in panels)


def test_settings_of_the_reader_do_not_change_the_figure():
    expected = plots.seeds(SCORES, "dice")._repr_png_()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "axes.facecolor": "red"}):
        assert plots.seeds(SCORES, "dice")._repr_png_() == expected


@pytest.mark.parametrize("orientation", ["LPS", "PIR"])
def test_storage_order_does_not_change_the_figure(orientation):
    def drawn(x: Case) -> list[bytes]:
        zoomed = plots.segmentation(x, {"DCD": x.label}, ISLES, plane="sagittal", zoom=True)
        return [figure._repr_png_() for figure in (plots.slices(x, ISLES), zoomed)]

    assert drawn(case(orientation)) == drawn(C)


def test_panels_are_radiological_and_in_millimetres():
    axial, coronal, sagittal = plots.slices(C, ISLES, channels=["dwi"]).axes
    for axes, letter in ((axial, "R"), (coronal, "R"), (sagittal, "A")):
        shown = axes.images[0].get_array()
        # The bright side, right or anterior, is on the left.
        assert shown[:, 1:5].mean() > shown[:, -5:-1].mean()
        assert letter in [text.get_text() for text in axes.texts]
    assert axial.images[0].get_array()[-9:-1].mean() > axial.images[0].get_array()[1:9].mean()
    assert coronal.images[0].get_array()[4:7].mean() > coronal.images[0].get_array()[1:4].mean()
    # 12 x 20 x 8 voxels of 2 x 1 x 4 mm.
    extents = [axes.images[0].get_extent() for axes in (axial, coronal, sagittal)]
    assert extents == [[-12, 12, -10, 10], [-12, 12, -16, 16], [-10, 10, -16, 16]]
    assert {axes.get_aspect() for axes in (axial, coronal, sagittal)} == {1.0}


def test_contours_enclose_the_label_in_millimetres():
    (axes,) = plots.segmentation(C, {}, ISLES, plane="sagittal").axes
    points = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    # y 12..15 of 20 x 1 mm, mirrored, so 2..6 mm left of the middle; z 2..4 of 8 x 4 mm.
    np.testing.assert_allclose([points[:, 0].min(), points[:, 0].max()], [-6, -2], atol=0.51)
    np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [-8, 4], atol=2.01)


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_labels_are_named():
    image, label = np.concatenate([C.image, C.image[:1]]), C.label.copy()
    label[3, 5:9, 2:5] = 4
    glioma = plots.segmentation(C._replace(image=image, label=label), {"DCD": label * 0 + 3}, BRATS)
    assert legend_of(glioma) == ["NETC", "ET", "RC", "truth"]
    assert [axes.get_title(loc="left") for axes in glioma.axes] == ["truth", "DCD"]


def test_a_page_of_slices_keeps_its_contours_in_the_notebook():
    """Its PNG has a palette; one chosen by frequency once turned the thin contours grey."""
    image = Image.open(io.BytesIO(plots.slices(C, ISLES)._repr_png_()))
    assert image.mode == "P"
    shown = {color for _, color in image.convert("RGB").getcolors(4096)}
    assert tuple(bytes.fromhex(plots.LABEL_COLORS[0][1:])) in shown


def test_bands_show_their_share_of_the_energy():
    figure = plots.bands(DETAILS, marked=["aad"])
    titles = [axes.get_title(loc="left").split() for axes in figure.axes[:8]]
    assert tuple(title[0] for title in titles) == BANDS
    share = 100 * (DETAILS**2).sum(axis=(1, 2, 3)) / (DETAILS**2).sum()
    np.testing.assert_allclose([float(title[1]) for title in titles], share, atol=0.051)
    frames = [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in figure.axes[:8]]
    assert [frame == plots.PALETTE[1] for frame in frames] == [False, True] + 6 * [False]
    ((low, high),) = {axes.images[0].get_clim() for axes in figure.axes[1:8]}
    assert low == -high


def test_forest_shows_intervals_and_what_is_detectable():
    shown = comparisons()
    figure = plots.forest(shown)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "difference in Dice (0–1)"
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(widths, [2 * c.detectable for c in shown])
    assert [shown[0].low, shown[0].high] in [list(line.get_xdata()) for line in axes.lines]
    assert not any("no evidence" in text for text in legend_of(figure))
    of_one_seed = plots.forest(comparisons(1))
    assert any("no evidence" in text for text in legend_of(of_one_seed))
    assert not of_one_seed.axes[0].patches


def test_doses_are_points_with_their_intervals_and_the_baseline_lies_at_zero():
    one, other = comparisons()
    left, right = plots.doses({"a": {"0": None, "1": one}, "b": {"2": other}}).axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "1"]
    assert [float(line.get_ydata()[0]) for line in left.lines] == [0, 0, one.difference]
    (bar,) = right.collections
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [other.low, other.high])


def test_a_histogram_counts_every_row_once():
    values = table("volume_ml", (1.0,), (1.5,), (10.0,), (99.0,), (100.0,))
    (axes,) = plots.histogram(values, "volume_ml", edges=(1, 10, 100)).axes
    assert [bar.get_height() for bar in axes.patches] == [2, 3]


def test_a_cohort_shows_every_case_where_its_lesion_is():
    other = C._replace(label=np.roll(C.label, 1, axis=2), id="another")
    figure = plots.cohort([C, other], ISLES)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert [axes.texts[-1].get_text() for axes in figure.axes] == [C.id, "another"]
    expected = [plots.compare_cases([c], ISLES).axes[0].images[0].get_array() for c in (C, other)]
    assert all(np.array_equal(*pair) for pair in zip(shown, expected, strict=True))
    assert not np.array_equal(*shown)


def test_columns_become_labels_with_units():
    labels = {
        "dice": "Dice (0–1)",
        "lesion_hd95_mm": "lesion-wise HD95 (mm)",
        "nsd_1mm": "NSD at 1 mm (0–1)",
        "nsd_1.5mm": "NSD at 1.5 mm (0–1)",
        "lesion_nsd_05mm": "lesion-wise NSD at 0.5 mm (0–1)",
        "volume_true_ml": "volume true (ml)",
        "memory_mib": "memory (MiB)",
        "minutes": "time (min)",
        "kd_loss": "KD loss",
    }
    assert {column: plots.axis_label(column) for column in labels} == labels


BROKEN = {
    "unknown channel": (lambda: plots.slices(C, ISLES, channels=["t1"]), "'dwi', 'adc', 'flair'"),
    "unknown plane": (lambda: plots.compare_cases([C], ISLES, plane="oblique"), "coronal"),
    "other grid": (lambda: plots.segmentation(C, {"DCD": C.label[1:]}, ISLES), "DCD"),
    "many bands": (lambda: plots.bands(np.ones((2, 8, 3, 3, 3))), "pick one"),
    "no column": (lambda: plots.seeds(SCORES, "hd95_mm"), "hd95_mm"),
    "other stages": (lambda: plots.features(PATCH, {**MAPS, "b": MAPS["DCD"][:1]}), "stages of b"),
    "odd grid": (lambda: plots.features(PATCH, maps((5, 4, 2))), r"divisor of \(12, 8, 4\)"),
    "no stage": (lambda: plots.by_stage(SCORES, "dice", "method", label=""), "'stage'"),
    "outside the bars": (lambda: plots.histogram(SCORES, "volume_ml", edges=(1, 2)), "outer edges"),
    "no precision": (lambda: plots.tradeoff(SCORES, "volume_ml", "dice"), "'precision'"),
    "no levels": (lambda: plots.growth(grown("voxels"), grown("voxels")), "levels"),
    "no comparison": (lambda: plots.forest([]), "none"),
    "no dose": (lambda: plots.doses({"levels": {"3": None}}), "none"),
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


def test_a_table_says_unit_and_better_direction_and_has_few_digits() -> None:
    rows = pd.DataFrame({"hd95_mm": [3.25, np.nan], "nsd_1mm": [0.12345, 1], "cases": [3, 40]})
    html = plots.table(rows.rename_axis(columns="metric")).hide(axis="index").to_html()
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t", html)
    assert cells == [
        *("HD95 (mm) ↓", "NSD at 1 mm ↑", "cases"),
        *("3.2", "0.123", "3", "–", "1.000", "40"),
    ]
    assert plots.measured("hd95_mm", -1.25, -3, 0.5) == "−1.2 [−3.0, +0.5]"
