"""Losses of regions against loops over voxels, channels and classes."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import outputs
import pytest
import torch
from outputs import drawn, staged
from torch import Tensor, nn

from dcd_core.methods import build
from dcd_core.methods.regions import ReCo
from dcd_core.types import ContractError


def labels(side: int = 4, batch: int = 2) -> Tensor:
    return outputs.labels(size=side, batch=batch, seed=3)


def voxels(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*(range(n) for n in shape))


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
    value = build("ifvd", (3,), (5,))(staged(s), staged(t), y)
    squares = []
    for i in range(2):
        close = [closeness(x[i].numpy(), y[i, 0].numpy()) for x in (s, t)]
        squares.extend(((close[0] - close[1]) ** 2)[y[i, 0].numpy() >= 0])
    assert value.item() == pytest.approx(np.mean(squares), rel=1e-9)


def test_ifvd_ignores_a_label_of_its_own_as_it_does_minus_one() -> None:
    s, t, y = drawn(2, 3, 4, 4, 4, seed=1), drawn(2, 5, 4, 4, 4, seed=2), labels()
    expected = build("ifvd", (3,), (5,))(staged(s), staged(t), y.where(y < 2, -1))
    value = build("ifvd", (3,), (5,), ignore=255)(staged(s), staged(t), y.where(y < 2, 255))
    assert value == expected
    assert value != build("ifvd", (3,), (5,))(staged(s), staged(t), y)


def test_gradients_flow_through_the_centres() -> None:
    s, t = (drawn(1, 3, 2, 2, 2, seed=n) for n in (1, 2))
    method, y = build("ifvd", (3,), (3,)), torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    assert torch.autograd.gradcheck(lambda x: method(staged(x), staged(t), y), s.requires_grad_())


def test_ifvd_compares_stages_of_small_sides_only() -> None:
    fine, deep = drawn(1, 3, 8, 8, 8, seed=1), drawn(1, 3, 4, 4, 4, seed=2)
    other = (drawn(1, 3, 8, 8, 8, seed=4), drawn(1, 3, 4, 4, 4, seed=5))
    y = labels(8, 1)
    one = build("ifvd", (3, 3), (3, 3), side=4)(staged(fine, deep), staged(*other), y)
    assert one == build("ifvd", (3,), (3,))(staged(deep), staged(other[1]), y)
    with pytest.raises(ContractError, match=r"stages of IFVD.*\(8, 8, 8\)"):
        build("ifvd", (3,), (3,), side=4)(staged(fine), staged(fine), y)


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
        if y[i, v] > 0:
            fore[i, v] = 1 / (y[i] == y[i, v]).sum()
        elif counts or masks == "released":
            back[i, v] = 1 / ((y[i] <= 0) if masks == "released" else (y[i] == 0)).sum()
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
    s, t = (drawn(2, c, side, side, side, seed=c) for c in (3, 4))
    y = labels(side)
    y[:, :, 0, 0] = -1
    method = build("reco", (3,), (4,), masks=masks).double()
    value = method(staged(s), staged(t), y)
    adapted = method.adapters[0](s).detach()
    assert value.item() == pytest.approx(reco(adapted, t, y, method.contexts[0], masks), rel=1e-6)


def test_context_frozen_at_zero_adds_nothing() -> None:
    s, t, y = drawn(1, 4, 4, 4, 4, seed=1), drawn(1, 4, 4, 4, 4, seed=2), labels(batch=1)
    frozen = build("reco", (4,), (4,), context="frozen", adapters="none").double()
    assert not [p for p in frozen.parameters() if p.requires_grad]
    assert not frozen.contexts[0](s[:, :, :1, :1, :1]).any()
    # With neither regions nor contrast of attention the plain MSE is all that is left.
    nowhere = torch.full_like(y, -1)
    same_attention = staged(-t)
    value = frozen(same_attention, staged(t), nowhere)
    assert value.item() == pytest.approx((2 * t).square().mean().item(), rel=1e-9)
    assert frozen(staged(s), staged(t), y) > 0


def test_stages_weigh_by_a_geometric_row_that_sums_to_one() -> None:
    method = ReCo((4,) * 6, (4,) * 6)
    np.testing.assert_allclose(method.shares, [0.574, 0.250, 0.109, 0.047, 0.021], atol=1e-3)
    options = {"adapters": "none", "context": "frozen"}
    s, t = ([drawn(1, 4, 4, 4, 4, seed=n + i) for i in range(2)] for n in (1, 3))
    each = [
        build("reco", (4,), (4,), **options).double()(staged(x), staged(y), labels(batch=1))
        for x, y in zip(s, t, strict=True)
    ]
    both = build("reco", (4,) * 3, (4,) * 3, **options).double()
    value = both(staged(*s), staged(*t), labels(batch=1))
    assert value.item() == pytest.approx(np.dot([x.item() for x in each], both.shares))


def test_released_is_frozen_and_takes_what_is_ignored_for_background() -> None:
    method = ReCo.released((4, 4, 8), (4, 8, 8))
    assert not [p for p in method.parameters() if p.requires_grad]
    assert isinstance(method.adapters[0], nn.Identity)
    assert method.adapters[1].bias is not None
    s, t = ([drawn(1, 4, 4, 4, 4, seed=n)] * 2 for n in (1, 2))
    same = ReCo.released((4, 4), (4, 4)).double()
    y = labels(batch=1)
    background, ignored, both = (
        same(staged(*s), staged(*t), z).item() for z in (0 * y, 0 * y - 1, -(y % 2))
    )
    assert background == ignored == both
    assert background != same(staged(*s), staged(*t), y).item()
