"""The shape of the project: which module imports which, and what every public name says."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from modules import PROJECT, TREES

# The names that programs outside this project may rely on: section 3 of the architecture.
PUBLIC = {
    "dcd_core.wavelet": "BANDS dwt3 idwt3 wavedec3 waverec3 max_level",
    "dcd_core.dcd": "PUBLISHED detail_distance DCD kd_weight",
    "dcd_core.methods": "METHODS build",
    "dcd_core.models": "Segmenter dynunet resenc swin shrink from_nnunet planned save load",
    "dcd_core.train": "Recipe Distiller EMA fit",
    "dcd_core.infer": "predict",
    "dcd_core.types": "Output Stages Volume ContractError",
    "dcd_lab.data": "brats2024 isles2022 read audit folds prepare Patches write export "
    "predict_case",
    "dcd_lab.metrics": "dice hd95 nsd brats2024 isles2022 boundary_dice dice_by_volume score "
    "lesions",
    "dcd_lab.stats": "compare holm summarise interval detectable",
    "dcd_lab.phantom": "glioma stroke cohort difficulty",
    "dcd_lab.deploy": "Cost check_export cost export_onnx latency_ms load macs peak_mib quantize "
    "simulate_int8",
    "dcd_lab.compress": "Group ReweightedGroupLasso Slice channel_groups prune squared_norms",
}


def test_public_names_are_where_they_are_promised() -> None:
    modules = {name: importlib.import_module(name) for name in PUBLIC}
    lost = [f"{m}.{n}" for m in PUBLIC for n in PUBLIC[m].split() if not hasattr(modules[m], n)]
    assert lost == []
    loss = modules["dcd_core.dcd"].DCD
    assert callable(loss.released)
    assert callable(loss.per_stage)


def test_imports_point_downward() -> None:
    """The layers are in pyproject.toml, [tool.importlinter]."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_file_is_read_in_one_sitting() -> None:
    lengths = {name: len((PROJECT / name).read_text("utf-8").splitlines()) for name in TREES}
    most = {"dcd_core/dcd.py": 250}
    assert {name: n for name, n in lengths.items() if n > most.get(name, 300)} == {}


def test_importing_the_method_stays_light() -> None:
    """Of what [lab] and [dev] install nothing is loaded, and so nothing is needed."""
    code = "import sys, dcd_core.train, dcd_core.models, dcd_core.methods, dcd_core.infer; "
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"monai", "pandas", "matplotlib", "nilearn", "nibabel", "scipy", "torchvision"}
    heavy |= {"sklearn", "safetensors", "IPython", "papermill", "beartype", "dcd_lab"}
    assert loaded >= {"torch", "pywt"}
    assert not loaded & heavy


def test_every_public_name_is_documented_by_a_sentence() -> None:
    def documented(node: ast.AST) -> bool:
        first = (ast.get_docstring(node) or "").split("\n\n", 1)[0].strip()  # type: ignore[arg-type]
        return bool(re.match(r"[A-Z0-9`\"(]", first)) and first.endswith((".", ":", "?"))

    silent = [file for file, tree in TREES.items() if not documented(tree)]
    silent += [
        f"{file}: {node.name}"
        for file, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not documented(node)
    ]
    assert silent == []


def kept_files() -> list[Path]:
    """Return the text files a clone has: tracked ones, and new ones that git does not ignore."""
    listing = ["git", "-C", str(PROJECT), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        done = subprocess.run(listing, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    binary = {".png", ".npz", ".gz", ".woff2", ".woff", ".ico", ".onnx"}
    paths = [PROJECT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


def test_kept_files_are_small_and_name_no_place_of_one_machine() -> None:
    # Written in pieces, so that this file passes its own test.
    places = ("/" + "work/", "/" + "root/", "/" + r"home/\w", r"C:\\" + "Users", "/" + "Users/")
    place = re.compile("|".join(places))
    files = kept_files()
    assert [str(path) for path in files if place.search(path.read_text("utf-8", "replace"))] == []
    assert [str(path) for path in files if path.stat().st_size > 3e6] == []
