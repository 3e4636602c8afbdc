"""Relations among regions against naive sums over pairs and triples of nodes."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from outputs import noise, staged
from torch import Tensor

from dcd_core.method import averaged
from dcd_core.methods import build

each = pytest.mark.parametrize("name", ["skd", "rkd", "cirkd"])


def pair(batch: int = 2) -> tuple[Tensor, Tensor]:
    return (
        noise(batch, 3, 4, 4, 4, seed=1, dtype=torch.float64),
        noise(batch, 5, 4, 4, 4, seed=2, dtype=torch.float64),
    )


def regions(x: Tensor, nodes: int) -> np.ndarray:
    """Means of blocks of a cube (b, c, n, n, n), nodes dividing n: (b, nodes^3, c)."""
    step = x.shape[2] // nodes
    rows = []
    for sample in x.numpy():
        corners = product(range(0, x.shape[2], step), repeat=3)
        blocks = (sample[:, i : i + step, j : j + step, k : k + step] for i, j, k in corners)
        rows.append([block.mean((1, 2, 3)) for block in blocks])
    return np.array(rows)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (norm(a) * norm(b)))


def skd(s: np.ndarray, t: np.ndarray) -> float:
    n = range(s.shape[1])
    squares = [
        (cosine(x[i], x[j]) - cosine(y[i], y[j])) ** 2
        for x, y in zip(s, t, strict=True)
        for i, j in product(n, n)
    ]
    return float(np.mean(squares))


def rkd(s: np.ndarray, t: np.ndarray) -> float:
    s, t = (x.reshape(-1, x.shape[2]) for x in (s, t))
    n = range(len(s))

    def mean_distance(x: np.ndarray) -> float:
        return float(np.mean([norm(x[i] - x[j]) for i, j in product(n, n) if i != j]))

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        return 0.0 if j in (i, k) else cosine(x[i] - x[j], x[k] - x[j])

    ms, mt = mean_distance(s), mean_distance(t)
    far = [huber(norm(s[i] - s[j]) / ms - norm(t[i] - t[j]) / mt) for i, j in product(n, n)]
    turned = [huber(angle(s, i, j, k) - angle(t, i, j, k)) for i, j, k in product(n, n, n)]
    return float(25 * np.mean(far) + 50 * np.mean(turned))


def cirkd(s: np.ndarray, t: np.ndarray) -> float:
    def row(x: np.ndarray, b: int, i: int, c: int) -> np.ndarray:
        z = np.exp(np.array([cosine(x[b, i], other) for other in x[c]]) / 0.1)
        return z / z.sum()

    batch, n = range(len(s)), range(s.shape[1])
    rows = [(row(s, b, i, c), row(t, b, i, c)) for b, c in product(batch, batch) for i in n]
    return float(np.mean([np.sum(q * np.log(q / p)) for p, q in rows]))


@pytest.mark.parametrize("oracle", [skd, rkd, cirkd])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_relation_is_the_naive_sum(oracle: object, batch: int) -> None:
    student, teacher = pair(batch)
    value = build(oracle.__name__, (3,), (5,), nodes=2)(staged(student), staged(teacher))
    expected = oracle(regions(student, 2), regions(teacher, 2))
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert value > 0


def test_nodes_are_means_of_regions_and_no_more_than_voxels() -> None:
    x, _ = pair()
    nodes = averaged(x, 2).flatten(2).mT
    np.testing.assert_allclose(nodes.numpy(), regions(x, 2), rtol=1e-12)
    assert averaged(x, 8).shape == x.shape
    torch.testing.assert_close(averaged(x[:, :, :, :2, :1], 4), x[:, :, :, :2, :1])


@each
def test_relations_ignore_the_size_and_the_basis_of_features(name: str) -> None:
    _, teacher = pair()
    turn, _ = torch.linalg.qr(noise(5, 5, dtype=torch.float64))
    student = 3 * torch.einsum("ij,bjdhw->bidhw", turn, teacher)
    value = build(name, (5,), (5,))(staged(student), staged(teacher))
    assert value.item() == pytest.approx(0, abs=1e-12)


@each
@pytest.mark.parametrize("side", [1, 4])
def test_maps_without_any_contrast_are_finite(name: str, side: int) -> None:
    student = torch.zeros(1, 3, side, side, side, requires_grad=True)
    value = build(name, (3,), (5,))(staged(student), staged(noise(1, 5, side, side, side)))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
