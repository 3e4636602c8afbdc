"""Headers, params, plans and command lines of any kind: what the reader's oracle says, or an error.

The oracle of a NIfTI file is nibabel: its voxels and its affine. Of a header that is sound the
values are required; any other gives the same values or a ContractError.
"""

import copy
import gzip
import json
import logging

import nibabel as nib
import numpy as np
import pytest
from fuzz import NUMBERS, REFUSED, fuzzed, mostly, tried
from headers import by_nibabel, headers
from hypothesis import strategies as st
from nnunet import network_of
from nnunet import write as write_nnunet

from dcd_core.models import from_nnunet
from dcd_lab.cli import main
from dcd_lab.data import export, volumes
from runner import parameters, sources

pytestmark = pytest.mark.unchecked


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_headers(suffix, tmp_path, caplog, tally):
    caplog.set_level(logging.CRITICAL, "nibabel.global")
    path, out = tmp_path / f"scan{suffix}", tmp_path / f"label{suffix}"

    def check(given):
        content, sound = given
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        found, expected = tried(volumes.load, path), by_nibabel(path)
        if sound:
            assert expected is not None
            assert found is not REFUSED
        if found is not REFUSED:
            np.testing.assert_array_equal(found.array, expected[0])
            np.testing.assert_array_equal(found.affine, expected[1])
            assert np.isfinite(found.array).all()
        label = np.arange(64).reshape(4, 4, 4) % 3
        if expected is not None:
            label = label[tuple(map(slice, expected[0].shape))]
        written = tried(export, label, out, reference=path)
        if written is not REFUSED:
            np.testing.assert_array_equal(
                np.asarray(nib.load(out).dataobj), label.reshape(nib.load(path).shape)
            )
            np.testing.assert_array_equal(nib.load(out).affine, nib.load(path).affine)
        return found

    fuzzed(headers(), check, tally, short=40, long=500)


def test_label_values(tmp_path, tally):
    """What is exported comes back, or is refused."""
    reference, out = tmp_path / "scan.nii", tmp_path / "label.nii"
    image = nib.Nifti1Image(np.zeros((2, 1, 1), np.float32), np.eye(4))
    image.header.set_slope_inter(0.5, 2)
    nib.save(image, reference)

    def check(given):
        values, kind = given
        with np.errstate(all="ignore"):
            label = np.array(values).reshape(2, 1, 1).astype(kind)
        written = tried(export, label, out, reference=reference)
        if written is not REFUSED:
            np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj), label)
        return written

    numbers = st.one_of(st.integers(-2, 70000), st.floats(-2, 5), st.sampled_from([np.nan, 2**40]))
    kinds = st.sampled_from(["f4", "f8", "i8", "u2", "c8", "?", "O", "U4", ">i4"])
    fuzzed(st.tuples(st.tuples(numbers, numbers), kinds), check, tally)


WORDS = [
    "steps",
    "shared",
    "01-waves",
    "rate",
    "3",
    "0.5",
    "[1, 2]",
    "null",
    ".nan",
    "&a",
    "*a",
    "!!python/object:os.system x",
]
TEXT = st.one_of(
    st.text(max_size=20),
    st.lists(
        st.sampled_from([*WORDS, ":", ": ", "\n", "  ", "{", "}", "[", "]", "${x}", "#", "'"]),
        max_size=9,
    ).map("".join),
)


@pytest.fixture
def pages(workspace):
    """A notebook with parameters, in an empty project."""
    from nbformat import v4

    cell = v4.new_code_cell("steps = 3\nrate = 0.5\nnames = ['a']", id="a")
    cell.metadata.tags = ["parameters"]
    path = workspace / "notebooks" / "01-waves.ipynb"
    path.write_text(json.dumps(v4.new_notebook(cells=[cell])), "utf-8")
    return sources.discover(path.parent)


def test_params_files_and_assignments(pages, workspace, tally):
    file = workspace / "notebooks" / "params" / "study.yml"

    def check(given):
        content, assigned = given
        file.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        overrides = tried(parameters.assignments, [assigned])
        found = tried(parameters.resolve, pages, "study", {} if overrides is REFUSED else overrides)
        if found is not REFUSED:
            for name, kind in {"steps": int, "rate": float, "names": list}.items():
                value = found["01-waves"].get(name, kind())
                assert isinstance(value, kind)
                assert value == value
        return found

    sound = st.builds("shared: {{steps: {}}}\n01-waves: {{rate: {}}}\n".format, NUMBERS, NUMBERS)
    content = st.one_of(sound, TEXT, st.binary(max_size=20))
    assigned = st.one_of(
        st.builds("{}={}".format, st.sampled_from(["steps", "rate", "names", "x"]), TEXT), TEXT
    )
    fuzzed(st.tuples(content, assigned), check, tally, short=40, long=500)


@st.composite
def mutated(draw, document):
    """A document of JSON with a value in it changed, or left out."""
    changed = copy.deepcopy(document)
    places = []

    def walk(inner):
        for key in inner if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(changed)
    inner, key = draw(st.sampled_from(places))
    if draw(st.booleans()):
        del inner[key]
    else:
        inner[key] = draw(
            st.one_of(
                st.integers(-2, 9),
                st.floats(),
                st.none(),
                st.text(max_size=5),
                st.just({}),
                st.just([]),
            )
        )
    return changed


def test_plans_of_nnunet(tmp_path, tally):
    write_nnunet(tmp_path, network_of("PlainConvUNet"))
    files = {
        name: json.loads((tmp_path / name).read_text("utf-8"))
        for name in ("plans.json", "dataset.json")
    }
    truth = from_nnunet(tmp_path).state_dict()

    def check(given):
        name, document = given
        for other, content in files.items():
            (tmp_path / other).write_text(
                json.dumps(document if other == name else content), "utf-8"
            )
        model = tried(from_nnunet, tmp_path)
        if model is not REFUSED:
            assert all((w == truth[key]).all() for key, w in model.state_dict().items())
        return model

    given = st.sampled_from([*files]).flatmap(lambda n: st.tuples(st.just(n), mutated(files[n])))
    fuzzed(given, check, tally, short=10, long=150)


COMMANDS = [
    "audit",
    "folds",
    "prepare",
    "train",
    "predict",
    "score",
    "cost",
    "export",
    "doctor",
    "--help",
]
TOKENS = ["", "\x1b[0m"]
TOKENS += [
    "--task",
    "isles2022",
    "brats2024",
    "-o",
    "--out",
    "-m",
    "absent.safetensors",
    "absent.nii",
    "--patch",
    "8",
    "0",
    "nan",
    "-1",
    "--threshold",
    "--json",
    "--workers",
    ".",
    "--steps",
    "--overlap",
    "--",
    "--spacing",
    "1e999",
]


def test_command_lines(workspace, monkeypatch, capsys, tally):
    monkeypatch.chdir(workspace)

    def check(given):
        code, said = main([*given]), capsys.readouterr()
        assert code in (0, 1, 2), said.err
        assert "defect" not in said.err
        assert "Traceback" not in said.err
        assert "\x1b" not in said.err
        return REFUSED if code == 2 else code

    # An argument ends at a null byte: no program is ever given one.
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
    given = st.lists(st.one_of(st.sampled_from(TOKENS), words), max_size=6)
    commands = mostly(st.sampled_from(COMMANDS), words)
    fuzzed(st.builds(lambda c, rest: (c, *rest), commands, given), check, tally, long=500)
