"""The benchmark times the functions it says it times; its tables follow from its samples."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import pywt
import torch
from golden import RELEASED, assert_stored
from outputs import noise as any_noise

from dcd_core.dcd import PUBLISHED

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "loss.py"
sys.path.insert(0, str(SCRIPT.parent))

import contenders  # noqa: E402
import loss as command  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import tables  # noqa: E402

CPU = torch.device("cpu")
noise = partial(any_noise, dtype=torch.float64)


@pytest.mark.parametrize("layout", command.LAYOUTS)
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_the_dense_peer_is_the_released_loss(path, layout):
    distance = partial(peers.dense_distance, layout=layout)
    assert_stored(path, distance, dtype=torch.float64, tolerance=1e-6)


def test_the_ptwt_peer_sums_the_coefficients_of_pywavelets():
    student, teacher = noise(2, 3, 12, 13, 16), noise(2, 3, 12, 13, 16, seed=1)
    difference, levels = (student - teacher).numpy(), 2
    _, *details = pywt.wavedecn(difference, "db2", mode="zero", level=levels, axes=(2, 3, 4))
    sizes = [details[-1]["ddd"].size, difference.size]
    energies = [sum((level[band] ** 2).sum() for band in PUBLISHED) for level in details]
    expected = sum(energy / size for energy, size in zip(energies, sizes, strict=True)) / levels
    found = peers.ptwt_distance(student, teacher, wavelet="db2", levels=levels)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_work_counts_products_and_what_operators_read_and_write():
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    out, total = torch.empty(2, 5), torch.zeros(2, 5)
    assert measure.work(lambda: a @ b) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: torch.mm(a, b, out=out)) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: total.add_(out)) == (4 * 30, 0)
    assert measure.work(lambda: a.view(3, 2).T[:1].detach()) == (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not memory.CLEAR.exists(), reason="peaks are read on Linux only")
def test_the_peak_counts_what_is_held_at_once():
    # In a process of its own: here an earlier test may have left memory with the allocator.
    code = (
        "import torch, memory; size, cpu = 2**24, torch.device('cpu'); torch.ones(size); "
        "print(memory.peak(lambda: [torch.ones(size), torch.ones(size)], cpu) / (4 * size))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert float(run.stdout) == pytest.approx(2, abs=0.03), run.stderr
    # The squares of plain MSE are gone before its gradient comes: the peak is one set of features.
    grid = contenders.Grid((1, 16, 48, 48, 48))
    found = memory.extra_bytes(grid, "plain MSE", "batch", CPU)
    assert found / (4 * grid.values) == pytest.approx(1, abs=0.25)
    with pytest.raises(RuntimeError, match="nobody"):
        memory.extra_bytes(contenders.Grid((1, 1, 8, 8, 8)), "nobody", "batch", CPU)


def timed(shape=(1, 32, 48, 48, 48), error=0.0):
    ms = {"plain MSE": [3.0, 4.0, 5.0], "orthonormal": [9.0, 8.0, 7.0], "released": [16.0]}
    ms |= {"ptwt": [80.0], "dense": [480.0], "copy": [2.0]}
    grid = contenders.Grid(shape)
    work = {name: measure.Work(28 * grid.values, 10**6) for name in ms if name != "copy"}
    return tables.Timed(grid, ms, work, "batch", error, error)


def test_ratios_are_ratios_of_medians():
    (ratios,) = tables.ratios([timed()], "CPU, 2 threads")
    on_cpus = [name for name in tables.RATIOS if "graphs" not in name]
    assert [ratios[name] for name in on_cpus] == ["60", "10", "2", "30"]
    on_gpu = timed()
    on_gpu.samples.update({"plain MSE, graph": [1.0], "orthonormal, graph": [3.0]})
    assert tables.ratios([on_gpu], "a GPU")[0]["orthonormal / MSE, graphs"] == "3"
    (times,) = tables.graphs([on_gpu])
    assert (times["orthonormal (ms)"], times["orthonormal, graph (ms)"]) == ("8", "3")
    (times,) = tables.cost([on_gpu], "a GPU")
    assert not any("graph" in name or "copy" in name for name in times)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_tf32_takes_part_and_large_stages_need_two_sets_of_features():
    cuda = torch.device("cuda")
    found = command.timed(command.QUICK.grids[0], command.QUICK, cuda)
    assert {"orthonormal, TF32", "orthonormal, graph"} < set(found.samples)
    assert max(found.loss_error, found.gradient_error) < 1e-4
    # As the gradient of plain MSE does there. Small ones are worked on whole, and need three.
    for shape, most in [((2, 32, 96, 96, 96), 2.0), ((1, 32, 48, 48, 48), 3.2)]:
        grid = contenders.Grid(shape)
        assert memory.extra_bytes(grid, "orthonormal", "batch", cuda) <= most * 4 * grid.values
