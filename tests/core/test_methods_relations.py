"""Relations among regions against naive sums over pairs and triples of nodes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from torch import Tensor

from dcd_core import methods
from dcd_core.methods.relations import RelationMethod, pooled
from dcd_core.types import ContractError, Output

NAMES = ("skd", "rkd", "cirkd")


def output(*stages: Tensor) -> Output:
    return Output(torch.zeros(len(stages[0]), 2, 4, 4, 4), stages)


def pair(generator: torch.Generator, batch: int = 2, side: int = 4) -> tuple[Tensor, Tensor]:
    size = (side, side, side)
    student = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    return student, torch.randn(batch, 5, *size, generator=generator, dtype=torch.float64)


def regions(x: Tensor, nodes: int) -> np.ndarray:
    """Means of blocks of a cube (b, c, n, n, n), nodes dividing n: (b, nodes^3, c)."""
    step = x.shape[2] // nodes
    rows = []
    for sample in x.detach().numpy():
        corners = product(range(0, x.shape[2], step), repeat=3)
        rows.append(
            [
                sample[:, i : i + step, j : j + step, k : k + step].mean((1, 2, 3))
                for i, j, k in corners
            ]
        )
    return np.array(rows)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (norm(a) * norm(b)))


def skd(s: np.ndarray, t: np.ndarray) -> float:
    n = range(s.shape[1])
    return float(
        np.mean(
            [
                (cosine(x[i], x[j]) - cosine(y[i], y[j])) ** 2
                for x, y in zip(s, t, strict=True)
                for i, j in product(n, n)
            ]
        )
    )


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


@pytest.mark.parametrize(("name", "oracle"), [("skd", skd), ("rkd", rkd), ("cirkd", cirkd)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_relation_is_the_naive_sum(name: str, oracle: object, batch: int) -> None:
    student, teacher = pair(torch.Generator().manual_seed(1), batch)
    method = methods.build(name, (3,), (5,), nodes=2)
    value = method(output(student), output(teacher))
    expected = oracle(regions(student, 2), regions(teacher, 2))  # type: ignore[operator]
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert value > 0


def test_nodes_are_means_of_regions_and_no_more_than_voxels(generator: torch.Generator) -> None:
    x, _ = pair(generator)
    np.testing.assert_allclose(pooled(x, 2).numpy(), regions(x, 2), rtol=1e-12)
    assert pooled(x, 8).shape == (2, 64, 3)
    torch.testing.assert_close(pooled(x[:, :, :, :2, :1], 4), x[:, :, :, :2, :1].flatten(2).mT)


@pytest.mark.parametrize("name", NAMES)
def test_relations_ignore_the_size_and_the_basis_of_features(
    name: str, generator: torch.Generator
) -> None:
    _, teacher = pair(generator)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    student = 3 * torch.einsum("ij,bjdhw->bidhw", turn, teacher)
    value = methods.build(name, (5,), (5,))(output(student), output(teacher))
    assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_relation_falls_when_the_student_follows_its_gradient(
    name: str, generator: torch.Generator
) -> None:
    student, teacher = pair(generator)
    student.requires_grad_()
    teacher.requires_grad_()
    method = methods.build(name, (3,), (5,))
    before = method(output(student), output(teacher))
    before.backward()
    assert teacher.grad is None
    assert student.grad is not None
    moved = (student - 0.01 * student.grad / student.grad.abs().max()).detach()
    assert method(output(moved), output(teacher)) < before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [1, 4])
def test_maps_without_any_contrast_are_finite(name: str, side: int) -> None:
    student = torch.zeros(1, 3, side, side, side, requires_grad=True)
    teacher = torch.randn(1, 5, side, side, side, generator=torch.Generator().manual_seed(2))
    value = methods.build(name, (3,), (5,))(output(student), output(teacher))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_two_patches_relate_to_each_other(generator: torch.Generator) -> None:
    """Cross-image terms are more than the mean of the patches' own."""
    student, teacher = pair(generator)
    for name in ("rkd", "cirkd"):
        method = methods.build(name, (3,), (5,))
        whole = method(output(student), output(teacher))
        alone = [method(output(student[i : i + 1]), output(teacher[i : i + 1])) for i in (0, 1)]
        assert abs(whole - torch.stack(alone).mean()) > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [("skd", {"nodes": 0}), ("cirkd", {"temperature": 0.0}), ("rkd", {"stages": (3,)})],
)
def test_options_are_checked(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ContractError):
        methods.build(name, (3, 3), (5, 5), **options)


def test_a_relation_has_no_weights_and_copes_with_any_channels() -> None:
    for name in NAMES:
        method = methods.build(name, (3, 4), (5, 7))
        assert isinstance(method, RelationMethod)
        assert not list(method.parameters())
