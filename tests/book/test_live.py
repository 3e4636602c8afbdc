"""The live figures: their arithmetic is that of dcd_core, their numbers those of the record."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import pywt
import torch
from book_pages import BOOK

from dcd_core.dcd import PUBLISHED, detail_distance
from dcd_core.wavelet import BANDS
from dcd_lab import data, phantom
from dcd_lab.experiments import record
from dcd_lab.tasks import ISLES

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
LIVE = BOOK / "_assets" / "live"
SCRIPTS = ("wavelet.js", "distance.js", "boundary.js")
SIDE = 16


def node(script: str, given: object) -> Any:
    """What a script returns that has the live figures as `dcd` and `given` as `x`."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed: the live figures' arithmetic is not checked")
    loads = [f"require({json.dumps(str(LIVE / name))});" for name in SCRIPTS]
    whole = f"""{"".join(loads)}
        const dcd = globalThis.dcd, x = JSON.parse(require("fs").readFileSync(0));
        const answer = (() => {{ {script} }})();
        console.log(JSON.stringify(answer, (_, v) => ArrayBuffer.isView(v) ? [...v] : v));"""
    text = json.dumps(given)
    done = subprocess.run(
        [program, "-e", whole], input=text, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SIDE,) * 3)


@pytest.mark.filterwarnings("ignore:Level value")  # the loss goes one further
def test_the_transform_is_that_of_pywavelets(volume: np.ndarray) -> None:
    script = f"""
        return Object.fromEntries(dcd.wavelet.NAMES.map(name => {{
          const levels = dcd.wavelet.usableLevels({SIDE}, name, 3);
          const packed = dcd.wavelet.analyse(x, {SIDE}, name, levels);
          const back = dcd.wavelet.synthesise(packed, {SIDE}, name, levels);
          return [name, {{ levels, packed, back }}];
        }}))"""
    answers = node(script, volume.ravel().tolist())
    assert {"haar", "db2", "db4", "sym4", "bior2.2"} == {*answers}
    for name, ours in answers.items():
        bands = pywt.wavedecn(volume, name, mode="periodization", level=ours["levels"])
        packed, _ = pywt.coeffs_to_array(bands)
        np.testing.assert_allclose(ours["packed"], packed.ravel(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours["back"], volume.ravel(), rtol=0, atol=1e-10)


def test_the_loss_is_that_of_dcd_core(volume: np.ndarray) -> None:
    script = f"""
        const rows = [];
        for (const wavelet of dcd.wavelet.NAMES) for (const levels of [1, 2, 3])
          for (const weighting of ["resolution", "energy"])
          for (const bands of [126, 254, 16, 3]) {{
            const chosen = dcd.wavelet.BANDS.map((_, band) => Boolean(bands & (1 << band)));
            const choice = {{ wavelet, levels, weighting, bands: chosen }};
            const sums = dcd.distance.energies(x, {SIDE}, wavelet, 3);
            const loss = dcd.distance.total(dcd.distance.terms(sums, {SIDE}, choice));
            const seen = dcd.distance.seen(x, {SIDE}, choice);
            const mean = seen.reduce((sum, v) => sum + v * v, 0) / seen.length;
            rows.push([wavelet, levels, weighting, bands, loss, mean]);
          }}
        return rows;"""
    rows = node(script, volume.ravel().tolist())
    x = torch.from_numpy(volume)[None, None]
    for wavelet, levels, weighting, mask, loss, mean in rows:
        chosen = [band for i, band in enumerate(BANDS) if mask & (1 << i)]
        expected = detail_distance(
            x,
            torch.zeros_like(x),
            wavelet=wavelet,
            levels=levels,
            bands=[band for band in chosen if band != "aaa"],
            coarse_weight=float("aaa" in chosen),
            level_weighting=weighting,
        )
        assert loss == pytest.approx(float(expected), rel=1e-9)
        if pywt.Wavelet(wavelet).orthogonal:  # the picture shows the loss
            assert mean == pytest.approx(float(expected), rel=1e-8)


@pytest.fixture(scope="module")
def features() -> dict[str, Any]:
    from explorer_still import read

    return read()


def test_the_features_are_of_the_recorded_runs(features: dict[str, Any]) -> None:
    kept = {
        arm: record.read(record.home() / run["entry"])["files"]["student.safetensors"]
        for arm, run in features["runs"].items()
    }
    given = {arm: run["weights"] for arm, run in features["runs"].items()}
    assert given == kept, "run python book/_ext/explorer_features.py"
    assert sum(file.stat().st_size for file in LIVE.iterdir()) < 3e6
    assert all(len(file.read_text("utf-8").splitlines()) <= 300 for file in LIVE.glob("*.js"))


@pytest.mark.slow
def test_the_features_are_what_the_networks_compute(
    features: dict[str, Any], tmp_path: Path
) -> None:
    """The case is made again, and encoded again."""
    from explorer_features import cut, encoded, parameters, patch_start
    from explorer_still import stages

    from dcd_core.train import read_fit

    page = parameters()
    number = page["stroke_split"][0] + page["stroke_split"][1]
    (made,) = phantom.members("stroke", [number], seed=0, spacing_mm=page["stroke_spacing_mm"])
    data.write([made], tmp_path, task=ISLES)
    case = data.prepare(data.read(data.isles2022(tmp_path)[0]), task=ISLES)
    assert case.id == features["case"]["id"]
    size = tuple(features["patch"]["size"])
    start = patch_start(case.label, size)
    assert start == features["patch"]["start"]
    image = cut(case, start, size)
    for network in features["networks"]:
        fit = read_fit(record.home() / features["runs"][network["arm"]]["entry"])
        computed = encoded(fit.student, image, len(features["stages"]))
        shown = stages(network, features["stages"])
        for x, y, steps in zip(computed, shown, network["steps"], strict=True):
            within = torch.tensor(steps)[:, None, None, None] * 0.51  # half a step, and rounding
            assert ((x - y).abs() <= within).all()


def test_the_answers_of_the_page_hold(features: dict[str, Any]) -> None:
    from explorer_still import pairs

    found = {arm: pairs(features, arm, "fitted")[0] for arm in ("undistilled", "DCD")}
    losses = {arm: float(detail_distance(*pair)) for arm, pair in found.items()}
    assert losses["DCD"] < losses["undistilled"]

    def part(pair: Pair, bands: tuple[str, ...], **options: Any) -> float:
        return float(detail_distance(*pair, bands=bands, level_weighting="energy", **options))

    def coarse(pair: Pair) -> float:
        return float((pair[0] - pair[1]).square().mean()) - part(pair, BANDS[1:])

    assert coarse(found["DCD"]) < coarse(found["undistilled"])
    student, teacher = found["DCD"]
    channel = int(teacher.square().sum((0, 2, 3, 4)).argmax())
    pair = (student[:, [channel]], teacher[:, [channel]])
    by_level = [part(pair, PUBLISHED, levels=n) for n in (1, 2, 3)]
    level = np.diff([0, *by_level])
    assert (8.0 ** np.arange(3) * level).argmax() == 2  # as published: the deepest
    assert level.argmax() < 2  # by energy: the first or the second
    assert part(pair, ("ddd",)) < 0.1 * float((pair[0] - pair[1]).square().mean())


BALL, SHELL = ({"shape": shape, "wavelet": "db4", "levels": 3} for shape in ("ball", "shell"))


def measured(*asked: tuple[dict[str, Any], dict[str, float]]) -> list[dict[str, Any]]:
    """What the toy measures of each (state, changes)."""
    found: list[dict[str, Any]] = node(
        "return x.map(([s, c]) => dcd.boundary.measure(s, c))", asked
    )
    return found


@pytest.mark.parametrize("shape", ["ball", "shell"])
def test_the_boundary_is_that_of_scipy_and_its_errors_those_of_dcd_core(shape: str) -> None:
    from boundary_still import volume as expected

    changes = {"move": 0.7, "blur": 1.2, "thin": 0.9, "brighten": 0.05, "shade": 0.1}
    state = {"shape": shape, "wavelet": "haar", "levels": 2}
    (found,) = measured((state, changes))
    pair = [expected(shape, **changes), expected(shape)]
    for name, values in zip(("student", "teacher"), pair, strict=True):
        np.testing.assert_allclose(found[name], values.ravel(), rtol=0, atol=1e-6)
    x = torch.from_numpy(pair[0])[None, None]
    student, teacher = (
        torch.tensor(found[n], dtype=x.dtype).reshape(x.shape) for n in ("student", "teacher")
    )

    def error(weighting: str, other: torch.Tensor) -> float:
        options: dict[str, Any] = {"wavelet": "haar", "levels": 2, "level_weighting": weighting}
        return float(detail_distance(other, teacher, **options))

    for weighting in ("resolution", "energy"):
        relative = error(weighting, student) / error(weighting, 0 * teacher)
        assert found[weighting] == pytest.approx(relative, rel=1e-9)
    assert sum(found["parts"].values()) == pytest.approx(1)
    masks = student > 0.5, teacher > 0.5
    both = 2 * int((masks[0] & masks[1]).sum()) / int(masks[0].sum() + masks[1].sum())
    assert found["dice"] == pytest.approx(both)


def test_the_answers_about_the_boundary_hold() -> None:
    haar = {**BALL, "wavelet": "haar"}
    bright, brighter, moved, noisy, blurred, shaded, by_haar, thinner, thin = measured(
        (BALL, {"brighten": 0.3}),
        (BALL, {"brighten": 0.5}),
        (BALL, {"move": 0.5}),
        (BALL, {"noise": 0.2}),
        (BALL, {"blur": 1.0}),
        (BALL, {"shade": 0.3}),
        (haar, {"shade": 0.3}),
        (SHELL, {"thin": 1.0}),
        (BALL, {"thin": 0.5}),
    )
    assert bright["mse"] > 0.5
    assert max(bright["resolution"], bright["energy"]) < 1e-9
    assert bright["dice"] > 0.9 > 0.5 > brighter["dice"]
    assert min(one["parts"]["seen"] for one in (moved, blurred, thin)) > 0.5
    assert min(one["parts"]["coarse"] for one in (moved, blurred, thin)) > 0.05
    assert noisy["energy"] > 10 * noisy["resolution"]
    assert blurred["resolution"] > 10 * blurred["coarse"]
    assert shaded["parts"]["seen"] < 0.02 < 0.15 < by_haar["parts"]["seen"]
    assert abs(thinner["parts"]["seen"] - thinner["parts"]["coarse"]) < 0.1
