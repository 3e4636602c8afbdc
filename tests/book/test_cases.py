"""The page on cases: its cases are those the scores name, its volumes those of the record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from book_pages import BOOK, ROOT
from windows import MODES, barriers, watch

from dcd_lab import data, metrics, phantom
from dcd_lab.experiments import record
from dcd_lab.experiments.verify import CASE_TOLERANCE, METRIC_TOLERANCE
from dcd_lab.tasks import ISLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Cases = dict[str, dict[str, Any]]
LIBRARY = BOOK / "_assets" / "niivue" / "niivue.js"
SCORES = ["small_lesion_dice", "boundary_2mm_dice", "dice"]
WAIT = 300_000  # ms: one processor draws the volumes, and others may be using it


@pytest.fixture(scope="module")
def cases() -> Cases:
    from case_files import RANKS, read

    return {rank: read(rank) for rank in RANKS}


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    return pd.read_csv(ROOT / "results/study/06-isles-scores.csv")


def masks(case: dict[str, Any]) -> dict[str, np.ndarray]:
    from case_files import unpacked

    bits = np.asarray(unpacked(case["masks"]["file"]).dataobj)
    return {name: bits >> bit & 1 for bit, name in enumerate(case["masks"]["names"])}


def test_the_cases_are_those_that_the_scores_name(cases: Cases, recorded: pd.DataFrame) -> None:
    own = recorded[recorded.method == "DCD"].dropna(subset="small_lesion_dice")
    means = own.groupby("case")[SCORES].mean()
    ranked = sorted(means.index, key=lambda id: (*means.loc[id], id))
    expected = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    assert {rank: case["id"] for rank, case in cases.items()} == {
        rank: ranked[at] for rank, at in expected.items()
    }, "run python book/_ext/case_volumes.py"
    assert {rank: case["place"] - 1 for rank, case in cases.items()} == expected
    assert {case["of"] for case in cases.values()} == {len(ranked)}


def test_their_scores_and_networks_are_those_of_the_record(
    cases: Cases, recorded: pd.DataFrame
) -> None:
    for case in cases.values():
        rows = recorded[recorded.case == case["id"]].set_index(["method", "seed"])
        for name, run in case["runs"].items():
            seed = 100 if name == "teacher" else case["seed"]
            assert case["scores"][name] == rows.loc[(name, seed), SCORES].to_dict()
            entry = record.home() / run["entry"]
            assert run["weights"] == record.read(entry)["files"]["student.safetensors"]
            (kept,) = entry.glob("lesions-*.csv")
            lesions = pd.read_csv(kept).query("case == @case['id']")
            shown = [(lesion["volume_ml"], lesion["dice"][name]) for lesion in case["lesions"]]
            assert sorted(shown) == sorted(zip(lesions.volume_ml, lesions.dice, strict=True))


def test_the_masks_have_these_scores(cases: Cases) -> None:
    for case in cases.values():
        truth, *_ = volumes = masks(case).values()
        assert sum(int(volume.sum()) for volume in volumes) > 0
        assert all(truth[tuple(lesion["at"])] for lesion in case["lesions"])
        for name, prediction in masks(case).items():
            if name == "truth":
                continue
            (row,) = metrics.score(prediction, truth, ISLES, case["spacing_mm"])
            for column, kept in case["scores"][name].items():
                tolerance = CASE_TOLERANCE if column == "dice" else METRIC_TOLERANCE
                assert row[column] == pytest.approx(kept, abs=tolerance)


def test_files_are_small_and_say_where_they_come_from(cases: Cases) -> None:
    from case_files import FOLDER, unpacked

    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6
    notice = (ROOT / "NOTICE").read_text("utf-8")
    assert hashlib.sha256(LIBRARY.read_bytes()).hexdigest() in notice
    for case in cases.values():
        assert f"// Written by {case['command'].split()[1]}" in (
            FOLDER / f"{case['rank']}.js"
        ).read_text("utf-8")
        for file in (*case["channels"].values(), case["masks"]["file"]):
            image = unpacked(file)
            assert image.get_data_dtype() == np.uint8
            assert list(image.shape) == case["size"]
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


@pytest.mark.slow
def test_a_case_is_the_phantom_made_again(cases: Cases, tmp_path: Path) -> None:
    from case_files import unpacked
    from case_volumes import greys
    from explorer_features import parameters

    page, case = parameters(), cases["best"]
    number = int(case["id"].removeprefix("sub-strokecase"))
    (made,) = phantom.members("stroke", [number - 1], seed=0, spacing_mm=page["stroke_spacing_mm"])
    data.write([made], tmp_path, task=ISLES)
    read = data.read(data.isles2022(tmp_path)[0])
    assert read.id == case["id"]
    expected = [*map(greys, read.image), read.label]
    shown = [unpacked(file) for file in case["channels"].values()]
    shown.append(nib.Nifti1Image(masks(case)["truth"].astype(np.uint8), shown[0].affine))
    for volume, image in zip(expected, shown, strict=True):
        # On the grid of the scan; outside of the box there is nothing.
        to_scan = np.linalg.inv(read.affine) @ image.affine
        voxels = np.indices(image.shape).reshape(3, -1)
        i, j, k = np.rint(to_scan[:3, :3] @ voxels + to_scan[:3, 3:]).astype(int)
        np.testing.assert_array_equal(volume[i, j, k], np.asarray(image.dataobj).ravel())
        assert volume.sum() == np.asarray(image.dataobj).sum(dtype=float)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.browser
def test_the_still_picture_and_the_scores_stand_alone(
    site: Path, browser: Browser, cases: Cases
) -> None:
    address = (site / "cases.html").as_uri()
    without = browser.new_context(java_script_enabled=False).new_page()
    without.goto(address)
    assert without.locator("#dcd-cases img").is_visible()
    assert without.locator("#dcd-cases button").count() == 0
    said = without.inner_text("article")
    for case in cases.values():
        assert f"{case['id']}, number {case['place']} of {case['of']}" in said
        assert all(f"{row['dice']:.3f}" in said for row in case["scores"].values())
    old = browser.new_context().new_page()
    seen = watch(old)
    old.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    old.goto(address)
    assert old.locator("script[src*=niivue]").count() == 0  # nothing is loaded before it is wanted
    old.get_by_role("button", name="Open in 3D").click()
    old.locator("#dcd-cases[data-state=failed]").wait_for()
    assert "WebGL 2" in old.get_by_role("alert").inner_text()
    assert old.locator("#dcd-cases img").is_visible()
    assert old.locator("script[src*=niivue]").count() == 0
    assert seen.errors == []
    for page in (without, old):
        page.context.close()


HAS_WEBGL2 = "Boolean(document.createElement('canvas').getContext('webgl2'))"
SHOWN = """() => dcd.cases.viewer.volumes.map(volume =>
  btoa(Array.from(volume.img2RAS(), x => String.fromCharCode(x)).join("")))"""
# How many pixels of the canvas are near a colour, when the crosshair hides none.
PAINTED = """([r, g, b]) => {
  const { viewer } = dcd.cases, { gl } = viewer, width = viewer.opts.crosshairWidth;
  viewer.opts.crosshairWidth = 0;
  viewer.drawScene();
  viewer.opts.crosshairWidth = width;
  const size = [gl.drawingBufferWidth, gl.drawingBufferHeight];
  const pixels = new Uint8Array(4 * size[0] * size[1]);
  gl.readPixels(0, 0, ...size, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let count = 0;
  for (let at = 0; at < pixels.length; at += 4)
    count += Math.hypot(pixels[at] - r, pixels[at + 1] - g, pixels[at + 2] - b) < 24;
  return count;
}"""
FOUND, MISSED, ADDED = (0, 158, 115), (213, 94, 0), (86, 180, 233)


@pytest.fixture
def window(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A small window, since every pixel is drawn by the processor."""
    size = {"width": 390, "height": 640}
    page = browser.new_context(**{**MODES[request.param], "viewport": size}).new_page()
    page.set_default_timeout(WAIT)
    if not page.evaluate(HAS_WEBGL2):
        pytest.skip("this Chromium starts no WebGL 2: the 3D view is not checked")
    yield page
    page.context.close()


def volumes(case: dict[str, Any], channel: str) -> list[np.ndarray]:
    from case_files import unpacked

    files = (case["channels"][channel], case["masks"]["file"])
    return [np.asarray(unpacked(file).dataobj).ravel(order="F") for file in files]


def shown(page: Page) -> list[np.ndarray]:
    import base64

    return [np.frombuffer(base64.b64decode(text), np.uint8) for text in page.evaluate(SHOWN)]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("window", ["dark", "phone"], indirect=True)
def test_niivue_shows_the_volumes_and_follows_the_hand(
    site: Path, window: Page, cases: Cases
) -> None:
    seen = watch(window)
    ready = window.locator("#dcd-cases[data-state=ok]")
    told, case = window.locator("#dcd-cases .dcd-live-told"), cases["best"]
    address = (site / "cases.html").as_uri() + "#case=best&view=axial&overlay=none"
    window.goto(address, wait_until="commit")
    ready.wait_for()
    for volume, expected in zip(shown(window), volumes(case, "dwi"), strict=True):
        np.testing.assert_array_equal(volume, expected)
    at = next(row["at"] for row in case["lesions"] if row["volume_ml"] < case["small_ml"])
    assert f"i={at[0]}&j={at[1]}&k={at[2]}" in window.url
    assert "truth lesion" in told.inner_text()

    first = case["lesions"][0]["at"]
    window.get_by_role("button", name="Show lesion 1").click()
    ready.wait_for()
    assert f"i={first[0]}&j={first[1]}&k={first[2]}" in window.url

    def painted() -> list[bool]:
        return [window.evaluate(PAINTED, colour) > 0 for colour in (FOUND, MISSED, ADDED)]

    assert painted() == [False, False, False]
    window.select_option("#dcd-overlay", "DCD-errors")
    ready.wait_for()
    here = {name: mask[:, :, first[2]] > 0 for name, mask in masks(case).items()}
    truth, own = here["truth"], here["DCD"]
    assert painted() == [(truth & own).any(), (truth & ~own).any(), (own & ~truth).any()]

    canvas = window.locator(".dcd-cases-canvas canvas")
    canvas.focus()
    window.keyboard.press("ArrowLeft")
    window.keyboard.press("PageUp")
    assert f"i={first[0] - 1}&j={first[1]}&k={first[2] + 1}" in window.url
    assert window.input_value("#dcd-axial") == str(first[2] + 1)
    window.focus("#dcd-coronal")
    window.keyboard.press("Home")
    ready.wait_for()
    assert "j=0" in window.url

    box = canvas.bounding_box() or {}
    middle = {"x": 0.5 * box["width"], "y": 0.5 * box["height"]}
    touch = window.evaluate("navigator.maxTouchPoints > 0")
    (canvas.tap if touch else canvas.click)(position=middle)
    window.wait_for_function("!location.hash.includes('j=0')")
    place = [int(window.input_value(f"#dcd-{name}")) for name in ("sagittal", "coronal")]
    assert np.abs(np.array(place) - np.array(case["size"][:2]) / 2).max() <= 2
    targets = window.eval_on_selector_all(
        "#dcd-cases :is(select, button, input)",
        "all => all.filter(e => e.checkVisibility())"
        ".map(e => Math.min(e.offsetWidth, e.offsetHeight))",
    )
    assert min(targets) >= 24
    assert barriers(window) == []
    assert window.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    window.select_option("#dcd-image", "flair")
    ready.wait_for()
    np.testing.assert_array_equal(shown(window)[0], volumes(case, "flair")[0])
    window.select_option("#dcd-case", "worst")
    ready.wait_for()
    np.testing.assert_array_equal(shown(window)[1], volumes(cases["worst"], "flair")[1])
    window.emulate_media(media="print")
    assert window.locator("#dcd-cases img").is_visible()
    assert not canvas.is_visible()
    assert seen.foreign == []
    assert seen.errors == []
