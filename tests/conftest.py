"""Every test runs with one thread, a drawing backend without windows, and seeds.

With DCD_CHECK_SHAPES=1, as CI has it, every call is checked against the shapes in its annotations.
"""

import os
from pathlib import Path

# Before numpy and torch are imported: two test processes must not fight for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("DCD_PROGRESS", None)

if os.environ.get("DCD_CHECK_SHAPES") == "1":
    from jaxtyping import install_import_hook

    # Importing takes twice as long with it: a developer's tests go without.
    install_import_hook(["dcd_core", "dcd_lab"], "typechecker.checked")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
PROJECT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the annotations refuse before the code does."""
    if os.environ.get("DCD_CHECK_SHAPES") == "1":
        for item in items:
            if item.get_closest_marker("unchecked"):
                item.add_marker(pytest.mark.skip(reason="its types are refused first"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Code takes seeds as arguments; what forgets to still gives the same test twice."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260522)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20260522)


@pytest.fixture
def project() -> Path:
    """The checkout these tests belong to."""
    return PROJECT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder: `records` reads and writes here and nowhere else."""
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    for name in ("DCD_DATA", "DCD_REAL_CASES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def checkout(workspace: Path) -> Path:
    """A project with the notebooks and params of this one, and nothing trained."""
    (workspace / "notebooks" / "params").rmdir()
    (workspace / "notebooks").rmdir()
    (workspace / "notebooks").symlink_to(Path(__file__).resolve().parents[1] / "notebooks")
    return workspace


@pytest.fixture
def real_cases() -> Path:
    """The folder of real public cases; a test that needs it is skipped where it is absent."""
    from dcd_lab import records

    folder = records.real_cases()
    if folder is None:
        pytest.skip("no real cases: put them in ../shared/data or name them in DCD_REAL_CASES")
    return folder
