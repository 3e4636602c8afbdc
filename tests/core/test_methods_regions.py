"""Losses of regions against loops over voxels, channels and classes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcd_core import methods
from dcd_core.methods import regions
from dcd_core.methods.regions import ReCo
from dcd_core.types import ContractError, Output


def output(*stages: Tensor) -> Output:
    return Output(torch.zeros(len(stages[0]), 2, 4, 4, 4), stages)


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(side: int = 4, batch: int = 2, classes: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(classes, (batch, 1, side, side, side), generator=generator)


def voxels(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*(range(n) for n in shape))


# --- IFVD -----------------------------------------------------------------------------------------


def closeness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of every voxel of one sample (c, d, h, w) and the mean of its class, by loops."""
    result = np.zeros(y.shape)
    for v in voxels(y.shape):
        mates = [x[(slice(None), *u)] for u in voxels(y.shape) if y[u] == y[v]]
        centre, own = np.mean(mates, axis=0), x[(slice(None), *v)]
        result[v] = own @ centre / np.linalg.norm(own) / np.linalg.norm(centre)
    return result


def test_ifvd_is_a_loop_over_voxels_and_classes() -> None:
    s, t, y = drawn(2, 3, 4, 4, 4, seed=1), drawn(2, 5, 4, 4, 4, seed=2), labels()
    y[0, 0, :, 1] = -1
    value = methods.build("ifvd", (3,), (5,))(output(s), output(t), y)
    squares = []
    for i in range(2):
        close = [closeness(x[i].numpy(), y[i, 0].numpy()) for x in (s, t)]
        squares.extend(((close[0] - close[1]) ** 2)[y[i, 0].numpy() >= 0])
    assert value.item() == pytest.approx(np.mean(squares), rel=1e-9)


def test_ifvd_ignores_a_label_of_its_own_as_it_does_minus_one() -> None:
    s, t, y = drawn(2, 3, 4, 4, 4, seed=1), drawn(2, 5, 4, 4, 4, seed=2), labels()
    expected = methods.build("ifvd", (3,), (5,))(output(s), output(t), y.where(y < 2, -1))
    value = methods.build("ifvd", (3,), (5,), ignore=255)(output(s), output(t), y.where(y < 2, 255))
    assert value == expected
    assert value != methods.build("ifvd", (3,), (5,))(output(s), output(t), y)


def test_gradients_flow_through_the_centres() -> None:
    """With every other voxel held, a voxel moves its mates' cosines."""
    f, y = drawn(1, 3, 2, 2, 2, seed=1), torch.zeros(1, 8, dtype=torch.long)
    f.requires_grad_()
    close = regions._closeness(f, y, y >= 0)
    close[0, 1:].sum().backward()
    assert f.grad is not None
    assert f.grad.flatten(2)[0, :, 0].abs().sum() > 1e-3


def test_ifvd_compares_stages_of_small_sides_only() -> None:
    fine, deep = drawn(1, 3, 8, 8, 8, seed=1), drawn(1, 3, 4, 4, 4, seed=2)
    other = (drawn(1, 3, 8, 8, 8, seed=4), drawn(1, 3, 4, 4, 4, seed=5))
    y = labels(8, 1)
    one = methods.build("ifvd", (3, 3), (3, 3), side=4)(output(fine, deep), output(*other), y)
    assert one == methods.build("ifvd", (3,), (3,))(output(deep), output(other[1]), y)
    with pytest.raises(ContractError, match=r"stages of IFVD.*\(8, 8, 8\)"):
        methods.build("ifvd", (3,), (3,), side=4)(output(fine), output(fine), y)


# --- ReCo -----------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def context(f: np.ndarray, block: nn.Module) -> np.ndarray:
    """The vector a block of context adds to one sample (c, v)."""
    weights = {name: p.detach().double().numpy() for name, p in block.named_parameters()}
    pooled = f @ softmax(weights["key.weight"][0] @ f)
    hidden = weights["change.0.weight"] @ pooled + weights["change.0.bias"]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = np.maximum(hidden, 0)
    return weights["change.3.weight"] @ hidden


def attention(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    space, channels = (np.abs(f).mean(axis) / 0.5 for axis in (0, 1))
    return softmax(space) * space.size, softmax(channels) * channels.size


def region_loss(a: np.ndarray, t: np.ndarray, member: np.ndarray) -> float:
    """One region of features (b, c, v) with the weights `member` (b, v), by loops."""
    total = 0.0
    for i, c, v in voxels(a.shape):
        space, channels = attention(t[i])
        total += (a[i, c, v] - t[i, c, v]) ** 2 * space[v] * channels[c] * member[i, v]
    return total / (a.shape[1] * member.sum() + 1e-300)


def members(y: np.ndarray, masks: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the foreground and of the background (b, v)."""
    fore, back = np.zeros(y.shape), np.zeros(y.shape)
    for i, v in voxels(y.shape):
        counts = y[i, v] >= 0
        if counts if masks == "released" else y[i, v] > 0:
            fore[i, v] = 1 / (y[i] == y[i, v]).sum()
        elif not counts if masks == "released" else counts:
            of_one_kind = (y[i] < 0) if masks == "released" else (y[i] == 0)
            back[i, v] = 1 / of_one_kind.sum()
    return fore, back


def reco(s: Tensor, t: Tensor, y: Tensor, block: nn.Module, masks: str) -> float:
    a, b, z = s.flatten(2).numpy(), t.flatten(2).numpy(), y.flatten(1).numpy()
    terms = [region_loss(a, b, m) for m in members(z, masks)]
    of_a, of_b = [attention(x) for x in a], [attention(x) for x in b]
    terms += [
        float(np.mean([np.abs(p[k] - q[k]) for p, q in zip(of_a, of_b, strict=True)]))
        for k in (0, 1)
    ]
    moved = [x + np.stack([context(f, block) for f in x])[:, :, None] for x in (a, b)]
    return sum(terms) + float(np.mean((moved[0] - moved[1]) ** 2))


@pytest.mark.parametrize("masks", ["sound", "released"])
@pytest.mark.parametrize("side", [2, 4])
def test_reco_is_the_sum_of_its_naive_terms(masks: str, side: int) -> None:
    s, t = (drawn(2, 4, side, side, side, seed=n) for n in (1, 2))
    y = labels(side)
    y[:, :, 0, 0] = -1
    method = methods.build("reco", (4,), (4,), masks=masks, adapters="none").double()
    value = method(output(s), output(t), y)
    assert value.item() == pytest.approx(reco(s, t, y, method.contexts[0], masks), rel=1e-6)


def test_context_frozen_at_zero_adds_nothing() -> None:
    s, t, y = drawn(1, 4, 4, 4, 4, seed=1), drawn(1, 4, 4, 4, 4, seed=2), labels(batch=1)
    frozen = methods.build("reco", (4,), (4,), context="frozen", adapters="none").double()
    assert not [p for p in frozen.parameters() if p.requires_grad]
    assert not frozen.contexts[0](s[:, :, :1, :1, :1]).any()
    # With neither regions nor contrast of attention the plain MSE is all that is left.
    nowhere = torch.full_like(y, -1)
    same_attention = output(-t)
    value = frozen(same_attention, output(t), nowhere)
    assert value.item() == pytest.approx((2 * t).square().mean().item(), rel=1e-9)
    assert frozen(output(s), output(t), y) > 0


def test_stages_weigh_by_a_geometric_row_that_sums_to_one() -> None:
    method = ReCo((4,) * 6, (4,) * 6)
    assert method.stages == (0, 1, 2, 3, 4)
    shares = np.array(method.shares) / 5
    np.testing.assert_allclose(shares, [0.574, 0.250, 0.109, 0.047, 0.021], atol=1e-3)
    assert shares.sum() == pytest.approx(1)


def test_released_is_frozen_and_forgets_the_background() -> None:
    method = ReCo.released((4, 4, 8), (4, 8, 8))
    assert not [p for p in method.parameters() if p.requires_grad]
    assert isinstance(method.adapters[0], nn.Identity)
    assert method.adapters[1].bias is not None
    s, t = ([drawn(1, 4, 4, 4, 4, seed=n)] * 2 for n in (1, 2))
    same = ReCo.released((4, 4), (4, 4)).double()
    of_background = same(output(*s), output(*t), torch.zeros(1, 1, 4, 4, 4, dtype=torch.long))
    as_foreground = same(output(*s), output(*t), torch.ones(1, 1, 4, 4, 4, dtype=torch.long))
    assert of_background == as_foreground


def test_a_patch_of_background_alone_is_finite() -> None:
    s, t = drawn(2, 4, 4, 4, 4, seed=1), drawn(2, 4, 4, 4, 4, seed=2)
    for y in (torch.zeros(2, 1, 4, 4, 4, dtype=torch.long), -torch.ones(2, 1, 4, 4, 4).long()):
        for name in ("ifvd", "reco", "reco-released"):
            x = s.clone().requires_grad_()
            value = methods.build(name, (4,), (4,)).double()(output(x), output(t), y)
            value.backward()
            assert x.grad is not None
            assert torch.isfinite(value)
            assert torch.isfinite(x.grad).all()


def test_reco_trains_adapters_and_context_from_the_first_step() -> None:
    method = methods.build("reco", (4, 6), (8, 10))
    s = [
        torch.randn(2, c, n, n, n, generator=torch.Generator().manual_seed(n)) for c, n in ((4, 8),)
    ]
    t = [
        torch.randn(2, c, n, n, n, generator=torch.Generator().manual_seed(9)) for c, n in ((8, 8),)
    ]
    method(output(*s), output(*t), labels(8)).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["ifvd", "reco"])
def test_nothing_is_left_to_learn_from_oneself(name: str) -> None:
    t, y = drawn(2, 4, 4, 4, 4, seed=1), labels()
    options: dict[str, Any] = {"adapters": "none"} if name == "reco" else {}
    value = methods.build(name, (4,), (4,), **options).double()(output(t), output(t), y)
    assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ifvd", {"side": 0}),
        ("reco", {"masks": "all"}),
        ("reco", {"context": "none"}),
        ("reco", {"temperature": 0.0}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        methods.build(name, (4, 4), (4, 4), **options)


@pytest.mark.parametrize("name", ["ifvd", "reco", "reco-released"])
def test_labels_are_asked_for(name: str) -> None:
    t = drawn(1, 4, 4, 4, 4, seed=1)
    with pytest.raises(ContractError, match="target"):
        methods.build(name, (4,), (4,)).double()(output(t), output(t))
