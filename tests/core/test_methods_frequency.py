"""FreeKD against pywt, its prompts on a teacher, and the masks of ACAM-KD."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dcd_core import method as shared
from dcd_core import methods, models
from dcd_core.methods import frequency, masks
from dcd_core.methods.frequency import FreeKD, dice_and_cross_entropy, masks_of
from dcd_core.methods.masks import ACAMKD, Fusion, overlap
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Output

BATCH = tuple[Tensor, Tensor]


def output(*stages: Tensor) -> Output:
    return Output(torch.zeros(len(stages[0]), 2, 4, 4, 4), stages)


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def details(x: Tensor, levels: int) -> list[np.ndarray]:
    """Per level, finest first: the detail bands of pywt, (7, b, c, d, h, w)."""
    found = pywt.wavedecn(x.numpy(), "haar", mode="periodization", level=levels, axes=(2, 3, 4))
    return [np.stack([level[k] for k in sorted(level)]) for level in found[:0:-1]]


# --- FreeKD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "levels"), [(16, 2), (8, 1), (4, 1), (2, 1)])
def test_prompt_free_is_the_l1_of_pywts_details(side: int, levels: int) -> None:
    s, t = (drawn(2, 3, side, side, side, seed=n) for n in (1, 2))
    method = methods.build("freekd-prompt-free", (3,), (3,), adapters="none")
    value = method(output(s), output(t))
    expected = np.mean([np.abs(d).mean() for d in details(s - t, levels)])
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_masks_are_sigmoids_of_prompts_and_bands() -> None:
    t, prompts = drawn(2, 3, 16, 16, 16, seed=1), drawn(3, 4, 3, seed=2)
    found = masks_of(t, prompts, 2)
    for mask, prompt, bands in zip(found, prompts, details(t, 2), strict=False):
        asked = np.einsum("tc,kbcdhw->btkdhw", prompt.numpy(), bands)
        np.testing.assert_allclose(mask.numpy(), 1 / (1 + np.exp(-asked)), rtol=1e-9)


def test_freekd_is_the_mean_over_tokens_of_masked_l1() -> None:
    s, t = (drawn(2, 3, 16, 16, 16, seed=n) for n in (1, 2))
    method = methods.build("freekd", (3,), (3,), adapters="none").double()
    method.trained.fill_(True)
    levels = []
    for prompt, of_t, of_d in zip(method.prompts_0, details(t, 2), details(s - t, 2), strict=False):
        asked = np.einsum("tc,kbcdhw->tkbdhw", prompt.numpy(), of_t)
        mask = 1 / (1 + np.exp(-asked))[:, :, :, None]
        levels.append(np.mean([np.abs(m * of_d).mean() for m in mask]))
    assert method(output(s), output(t)).item() == pytest.approx(np.mean(levels), rel=1e-9)


def test_untrained_prompts_are_refused() -> None:
    t = drawn(1, 3, 8, 8, 8, seed=1)
    with pytest.raises(ContractError, match=r"prepare\(teacher, batches\)"):
        methods.build("freekd", (3,), (3,))(output(t), output(t))


def teacher() -> Segmenter:
    """A small network taught to find bright balls."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = models.dynunet(1, 2, channels=(4, 6, 8), residual=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for image, target in batches(30, seed=1):
        loss = dice_and_cross_entropy(network(image).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def batches(count: int, *, seed: int) -> list[BATCH]:
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(16.0)
    result = []
    for _ in range(count):
        centre = torch.randint(4, 12, (2, 3, 1, 1, 1), generator=generator)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
        target = ((grid - centre).square().sum(1, keepdim=True) < 12).long()
        noise = torch.randn(target.shape, generator=generator)
        result.append((target + 0.5 * noise, target))
    return result


def own_answers(network: Segmenter, count: int, *, seed: int) -> list[BATCH]:
    """Batches whose targets are the teacher's logits: a task that needs all of its detail."""
    with torch.no_grad():
        return [(image, network(image).logits) for image, _ in batches(count, seed=seed)]


def test_prompts_learn_what_the_task_needs_on_batches_they_have_not_seen() -> None:
    network = teacher()
    seen, unseen = (own_answers(network, 4, seed=n) for n in (2, 5))
    method = FreeKD((2, 3, 4), (4, 6, 8), rate=0.05, diversity=0.0)

    def task() -> float:
        masked = [(method._masked(network, x, method._prompts())[0], y) for x, y in unseen]
        return float(np.mean([mse_loss(z.logits, y).item() for z, y in masked]))

    untrained = task()
    method.train_prompts(network, seen * 8, mse_loss)
    assert task() < 0.8 * untrained


def test_diversity_parts_the_masks() -> None:
    network = teacher()
    method = FreeKD((2, 3, 4), (4, 6, 8), rate=0.05, diversity=1.0)
    image, _ = batches(1, seed=5)[0]
    _, before = method._masked(network, image, method._prompts())
    method.train_prompts(network, batches(4, seed=2) * 4)
    _, after = method._masked(network, image, method._prompts())
    assert after < 0.95 * before


def test_prompt_training_leaves_the_teacher_as_it_is() -> None:
    network = teacher()
    network.train()
    before = copy.deepcopy(network)
    method = FreeKD((2, 3, 4), (4, 6, 8))
    drawn_prompts = [p.clone() for p in method._prompts()]
    assert len(drawn_prompts) == 2  # stages 1 and 2
    losses = method.train_prompts(network, batches(2, seed=2))
    assert len(losses) == 2
    assert all((p != q).any() for p, q in zip(method._prompts(), drawn_prompts, strict=True))
    assert network.training
    assert not [m for m in network.modules() if m._forward_hooks]
    for p, q in zip(network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    image, _ = batches(1, seed=3)[0]
    assert all(p.requires_grad for p in network.parameters())
    assert torch.equal(network(image).logits, before(image).logits)


def test_prepare_trains_once_and_the_checkpoint_keeps_it() -> None:
    network, data = teacher(), batches(1, seed=2)
    method = FreeKD((2, 3, 4), (4, 6, 8))
    method.prepare(network, data)
    kept = [p.clone() for p in method._prompts()]
    method.prepare(network, data)
    assert all(torch.equal(p, q) for p, q in zip(method._prompts(), kept, strict=True))
    again = FreeKD((2, 3, 4), (4, 6, 8))
    again.load_state_dict(method.state_dict())
    assert again.trained
    copied = copy.deepcopy(again)
    features = network(data[0][0])
    student = output(*(x[:, ::2] for x in features.stages))
    values = [m(student, features) for m in (method, again, copied)]
    assert values[0] > 0
    assert values[0] == values[1] == values[2]
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.adapters.parameters()}


def test_prompt_training_wants_a_batch_and_cleans_up_after_an_error() -> None:
    network = models.dynunet(1, 2, channels=(4, 6, 8), residual=False)
    method = FreeKD((2, 3, 4), (4, 6, 8))
    with pytest.raises(ContractError, match="batches"):
        method.prepare(network, [])

    def failing(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("of the task")

    with pytest.raises(RuntimeError, match="of the task"):
        method.train_prompts(network, batches(1, seed=1), failing)
    assert network.training
    assert not method.trained
    assert not [m for m in network.modules() if m._forward_hooks]


def test_the_teacher_sees_its_own_features_where_masks_are_open() -> None:
    """Masks of 1 rebuild every stage, so the teacher answers as without prompts."""
    network = teacher()
    image, _ = batches(1, seed=3)[0]
    method = FreeKD((2, 3, 4), (4, 6, 8), levels=1)
    assert method.usable_levels((8, 8, 8)) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frequency, "masks_of", lambda x, p, n: [m * 0 + 1 for m in masks_of(x, p, n)])
        opened, _ = method._masked(network, image, method._prompts())
    torch.testing.assert_close(opened.logits, network(image).logits, rtol=1e-4, atol=1e-4)
    dimmed, _ = method._masked(network, image, method._prompts())
    assert (dimmed.logits - opened.logits).abs().max() > 1e-2


def test_dice_and_cross_entropy_knows_right_from_wrong_and_ignores() -> None:
    _, target = batches(1, seed=1)[0]
    right = 20 * torch.cat([1 - target, target], 1).float()
    assert dice_and_cross_entropy(right, target) == pytest.approx(0, abs=1e-4)
    assert dice_and_cross_entropy(-right, target) > 10
    half = target.clone()
    half[:, :, 8:] = -1
    with pytest.raises(ContractError, match="task_loss"):
        dice_and_cross_entropy(right, target + 1)
    wrong_there = torch.cat([right[:, :, :8], -right[:, :, 8:]], 2)
    assert dice_and_cross_entropy(wrong_there, half) == pytest.approx(0, abs=1e-4)


# --- ACAM-KD --------------------------------------------------------------------------------------


def test_fused_attention_is_an_explicit_softmax() -> None:
    s, t = (drawn(2, 6, 4, 4, 4, seed=n) for n in (1, 2))
    fusion = Fusion(6, 3).double()
    q, k, v = (
        fusion.query(t.flatten(2).mT),
        fusion.key(s.flatten(2).mT),
        fusion.value(s.flatten(2).mT),
    )
    expected = ((q @ k.mT / 3**0.5).softmax(-1) @ v).mT.reshape(t.shape)
    torch.testing.assert_close(fusion.fused(s, t), expected, rtol=1e-9, atol=1e-12)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a * b).sum() / ((a * a).sum() + (b * b).sum()))


def test_acam_is_its_naive_terms() -> None:
    s, t = (drawn(2, 4, 4, 4, 4, seed=n) for n in (1, 2))
    method = ACAMKD((4,), (4,), masks=3, adapters="none").double()
    space, channels = (m.detach().numpy() for m in method.fusions[0](s, t, (4, 4, 4)))
    e = (s - t).square().flatten(2).numpy()
    terms = []
    for i in range(2):
        for m in range(3):
            terms.append((space[i, m] * e[i].mean(0)).sum() / space[i, m].sum())
            terms[-1] += (channels[i, m] * e[i].mean(1)).sum() / channels[i, m].sum()
    pairs = [(i, m, n) for i in range(2) for m, n in ((0, 1), (0, 2), (1, 2))]
    apart = np.mean([dice(x[i, m], x[i, n]) for x in (space, channels) for i, m, n in pairs])
    expected = np.mean(terms) + 2 * apart
    assert method(output(s), output(t)).item() == pytest.approx(expected, rel=1e-6)


def test_a_student_that_agrees_is_left_alone_by_errors_and_masks() -> None:
    t = drawn(2, 4, 4, 4, 4, seed=1)
    s = t.clone().requires_grad_()
    value = ACAMKD((4,), (4,), adapters="none").double()(output(s), output(t))
    value.backward()
    assert s.grad is not None
    assert not s.grad.any()
    assert 0 < value <= 2  # the masks' overlap
    assert ACAMKD((4,), (4,), adapters="none", diversity=0.0).double()(output(t), output(t)) == 0


def test_masks_live_through_training() -> None:
    """A mask that could shrink its own error would vanish in these steps."""
    torch.manual_seed(1)
    s, t = drawn(2, 4, 8, 8, 8, seed=1).float(), drawn(2, 6, 8, 8, 8, seed=2).float()
    method = ACAMKD((4,), (6,))
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    values, sizes = [], []
    for _ in range(60):
        loss = method(output(s), output(t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
        found = method.fusions[0](method.adapters[0](s), t, t.shape[2:])
        sizes.append(min(m.mean().item() for m in found))
    assert values[-1] < values[0]
    assert min(sizes) > 0.2


def test_a_map_larger_than_the_tokens_is_attended_coarsely() -> None:
    s, t = drawn(1, 4, 6, 6, 6, seed=1), drawn(1, 4, 6, 6, 6, seed=2)
    method = ACAMKD((4,), (4,)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "TOKENS", 3)
        seen = []
        handle = method.fusions[0].register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].shape[2:])
        )
        coarse = method(output(s), output(t))
        handle.remove()
    assert seen == [(3, 3, 3)]
    assert torch.isfinite(coarse)
    assert coarse != method(output(s), output(t))


def test_overlap_is_one_for_equal_masks_and_zero_for_disjoint_ones() -> None:
    half = torch.tensor([[[1.0, 1.0, 0.0, 0.0]] * 3])
    assert overlap(half) == pytest.approx(1)
    assert overlap(torch.eye(4)[None]) == 0


# --- all of them ----------------------------------------------------------------------------------


def prepared(name: str) -> nn.Module:
    method = methods.build(name, (3, 4), (4, 6)).double()
    if name == "freekd":
        method.trained.fill_(True)
    return method


@pytest.mark.parametrize("name", ["freekd", "freekd-prompt-free", "acam"])
def test_in_pieces_is_as_a_whole_and_trains_all_it_owns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = prepared(name)
    s = [drawn(2, c, n, n, n, seed=c).requires_grad_() for c, n in ((3, 16), (4, 8))]
    t = [drawn(2, c, n, n, n, seed=c + 9).requires_grad_() for c, n in ((4, 16), (6, 8))]
    inputs = [s[1], *method.parameters()]
    whole = torch.autograd.grad(method(output(*s), output(*t)), inputs)
    assert all(g.abs().sum() > 0 for g in whole)
    monkeypatch.setattr(shared, "CHUNK", 1000)
    loss = method(output(*s), output(*t))
    for a, b in zip(whole, torch.autograd.grad(loss, inputs, retain_graph=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    loss.backward()
    assert all(x.grad is None for x in t)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("freekd", {"tokens": 1}),
        ("freekd-prompt-free", {"levels": 0}),
        ("acam", {"masks": 1}),
        ("acam", {"stages": (7,)}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ContractError):
        methods.build(name, (4, 4), (4, 4), **options)
