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
from hypothesis import strategies as st
from nnunet import network_of
from nnunet import write as write_nnunet

from dcd_core.models import from_nnunet
from dcd_lab.cli import main
from dcd_lab.data import export, volumes
from runner import parameters, sources

pytestmark = pytest.mark.unchecked

CODES = [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280]
"""Types of voxels: u1 i2 i4 f4 f8 i1 u2 u4 i8 u8."""
ODD_CODES = [0, 1, 32, 128, 1536, 1792, 2048, 2304, -7]
"""Unknown, binary, complex, colours, long doubles."""
FLOATS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-8, 1e30, np.nan, np.inf, -np.inf])
SOUND = {
    "sform_code": st.integers(0, 4),
    "qform_code": st.integers(0, 4),
    "scl_slope": st.sampled_from([1.0, 0.0, 2.0, -0.5, np.nan]),
    "scl_inter": st.sampled_from([0.0, 3.0]),
    "xyzt_units": st.sampled_from([0, 2, 10, 18]),
}
ODD = {
    "sform_code": st.integers(-9, 99),
    "qform_code": st.integers(-9, 99),
    "scl_slope": FLOATS,
    "scl_inter": FLOATS,
    "xyzt_units": st.integers(0, 255),
    "vox_offset": st.sampled_from([0.0, 352.0, 360.0, 100.0, -1.0, 1e9, np.nan, np.inf]),
    "intent_code": st.integers(-1, 3000),
    "bitpix": st.integers(-1, 128),
    "sizeof_hdr": st.sampled_from([348, 0, 540, 1543569408]),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b"", b"xyz"]),
    "dim_info": st.integers(0, 255),
    "quatern_b": FLOATS,
    "quatern_c": FLOATS,
    "quatern_d": FLOATS,
    "qoffset_x": FLOATS,
    "slice_duration": FLOATS,
}
ODD |= {f"srow_{axis}": st.tuples(*[FLOATS] * 4) for axis in "xyz"}
ODD |= {"pixdim": st.tuples(*[FLOATS] * 8), "dim": st.tuples(*[st.integers(-2, 9)] * 8)}


@st.composite
def headers(draw):
    """A NIfTI file of a few voxels as bytes, and whether its header is sound."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    odd = draw(st.integers(0, 2)) > 0
    code = draw(st.sampled_from(ODD_CODES if odd and draw(st.booleans()) else CODES))
    header = nib.Nifti1Header(endianness=draw(st.sampled_from("<>")))
    header["magic"], header["vox_offset"], header["datatype"] = b"n+1", 352, code
    header["dim"] = [3, *shape, 1, 1, 1, 1]
    header["pixdim"] = [draw(st.sampled_from([1, -1])), 1, 2, 3, 0, 0, 0, 0]
    for axis, row in zip("xyz", ([0, -2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 1]), strict=True):
        header[f"srow_{axis}"] = row
    header["quatern_d"], header["qoffset_x"] = 0.6, 4
    for name, values in SOUND.items():
        header[name] = draw(values)
    bits = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
    header["bitpix"] = bits.get(code, 32)
    if odd:
        for name in draw(st.lists(st.sampled_from([*ODD]), max_size=2)):
            header[name] = draw(ODD[name])
    rng, count = np.random.default_rng(draw(st.integers(0, 99))), int(np.prod(shape))
    values = rng.integers(0, 100, count).astype(bits_type(header, code)).tobytes()
    return header.binaryblock + bytes(4) + values + bytes(draw(st.sampled_from([0, 8]))), not odd


def bits_type(header, code):
    """The type of voxels, in the byte order of the header."""
    kinds = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
    kinds |= {1024: "i8", 1280: "u8"}
    return np.dtype(header.endianness + kinds.get(code, "u4"))


def by_nibabel(path):
    """Voxels and affine as nibabel gives them, None where it gives none."""
    try:
        stored = nib.load(path)
        array = np.asarray(stored.dataobj, np.float32)
        return array.reshape(array.shape[:3]), stored.affine
    except Exception:  # it has an error of its own for every field
        return None


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

    fuzzed(headers(), check, tally, short=40, long=2000)


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
                assert isinstance(found["01-waves"].get(name), kind | None)
        return found

    sound = st.builds("shared: {{steps: {}}}\n01-waves: {{rate: {}}}\n".format, NUMBERS, NUMBERS)
    content = st.one_of(sound, TEXT, st.binary(max_size=20))
    assigned = st.one_of(
        st.builds("{}={}".format, st.sampled_from(["steps", "rate", "names", "x"]), TEXT), TEXT
    )
    fuzzed(st.tuples(content, assigned), check, tally, short=40, long=2000)


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
TOKENS = [
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
    "",
    "\x1b[0m",
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

    given = st.lists(st.one_of(st.sampled_from(TOKENS), st.text(max_size=5)), max_size=6)
    commands = mostly(st.sampled_from(COMMANDS), st.text(max_size=5))
    fuzzed(st.builds(lambda c, rest: (c, *rest), commands, given), check, tally, long=500)
