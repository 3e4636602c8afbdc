"""FreeKD against pywt, its prompts on a teacher, and the masks of ACAM-KD."""

import copy

import numpy as np
import pytest
import pywt
import torch
from outputs import drawn, staged
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dcd_core import models
from dcd_core.methods import build
from dcd_core.methods.frequency import FreeKD, dice_and_cross_entropy
from dcd_core.methods.masks import ACAMKD, Fusion
from dcd_core.models import Segmenter
from dcd_core.types import ContractError

BATCH = tuple[Tensor, Tensor]


def details(x: Tensor, levels: int) -> list[np.ndarray]:
    """Per level, finest first: the detail bands of pywt, (7, b, c, d, h, w)."""
    bands = pywt.wavedecn(x.numpy(), "haar", mode="periodization", level=levels, axes=(2, 3, 4))
    return [np.stack([level[k] for k in sorted(level)]) for level in bands[:0:-1]]


@pytest.mark.parametrize(("side", "levels"), [(16, 2), (8, 1), (4, 1), (2, 1)])
def test_prompt_free_is_the_l1_of_pywts_details(side: int, levels: int) -> None:
    s, t = (drawn(2, 3, side, side, side, seed=n) for n in (1, 2))
    value = build("freekd-prompt-free", (3,), (3,), adapters="none")(staged(s), staged(t))
    expected = np.sum([np.abs(d).mean() for d in details(s - t, levels)])
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_freekd_is_the_mean_over_tokens_of_masked_l1_summed_over_levels() -> None:
    s, t = (drawn(2, 3, 16, 16, 16, seed=n) for n in (1, 2))
    method = build("freekd", (3,), (3,), adapters="none").double()
    method.trained.fill_(True)
    levels = []
    for prompt, of_t, of_d in zip(method.prompts_0, details(t, 2), details(s - t, 2), strict=False):
        asked = np.einsum("tc,kbcdhw->tkbdhw", prompt.numpy(), of_t)
        mask = 1 / (1 + np.exp(-asked))[:, :, :, None]
        levels.append(np.mean([np.abs(m * of_d).mean() for m in mask]))
    assert method(staged(s), staged(t)).item() == pytest.approx(np.sum(levels), rel=1e-9)


def test_untrained_prompts_are_refused() -> None:
    t = drawn(1, 3, 8, 8, 8, seed=1)
    with pytest.raises(ContractError, match=r"prepare\(teacher, batches\)"):
        build("freekd", (3,), (3,))(staged(t), staged(t))
    with pytest.raises(ContractError, match="batches"):
        freekd().prepare(models.dynunet(1, 2, channels=(4, 6, 8)), [])


@pytest.fixture(scope="module")
def network() -> Segmenter:
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
        result.append((target + 0.5 * torch.randn(target.shape, generator=generator), target))
    return result


def freekd(**options: float) -> FreeKD:
    """For a student of half the network's channels."""
    return FreeKD((2, 3, 4), (4, 6, 8), **options)


def test_prompts_learn_what_the_task_needs_on_batches_they_have_not_seen(
    network: Segmenter,
) -> None:
    with torch.no_grad():  # targets are the teacher's logits: a task that needs all of its detail
        seen, unseen = (
            [(image, network(image).logits) for image, _ in batches(4, seed=n)] for n in (2, 5)
        )
    method = freekd(rate=0.05, diversity=0.0)

    def task() -> float:
        masked = [(method.masked(network, x, method.prompts())[0], y) for x, y in unseen]
        return float(np.mean([mse_loss(z.logits, y).item() for z, y in masked]))

    untrained = task()
    method.train_prompts(network, seen * 8, mse_loss)
    assert task() < 0.8 * untrained


@pytest.mark.parametrize("fails", [False, True])
def test_prompt_training_leaves_the_teacher_as_it_is(network: Segmenter, fails: bool) -> None:
    teacher, method = copy.deepcopy(network).train(), freekd()
    drawn_prompts = [p.clone() for p in method.prompts()]

    def failing(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("of the task")

    if fails:
        with pytest.raises(RuntimeError, match="of the task"):
            method.train_prompts(teacher, batches(1, seed=1), failing)
        assert not method.trained
    else:
        assert len(method.train_prompts(teacher, batches(2, seed=2))) == 2
        assert all((p != q).any() for p, q in zip(method.prompts(), drawn_prompts, strict=True))
    assert teacher.training
    assert not [m for m in teacher.modules() if m._forward_hooks]
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    kept = zip(teacher.state_dict().values(), network.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in kept)


def test_prepare_trains_once_and_the_checkpoint_keeps_it(network: Segmenter) -> None:
    data, method, again = batches(1, seed=2), freekd(), freekd()
    method.prepare(network, data)
    kept = [p.clone() for p in method.prompts()]
    method.prepare(network, data)
    assert all(torch.equal(p, q) for p, q in zip(method.prompts(), kept, strict=True))
    again.load_state_dict(method.state_dict())
    features = network(data[0][0])
    student = staged(*(x[:, ::2] for x in features.stages))
    assert method(student, features) == again(student, features) > 0
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.adapters.parameters()}


def test_masks_dim_the_detail_of_what_the_teacher_computes_next(network: Segmenter) -> None:
    """Prompts of zeros are masks of one half: a stage keeps its coarse band, half of its detail."""
    (image, _), *_ = batches(1, seed=3)
    method = freekd(levels=1, stages=[1])
    first, second, _ = network(image).stages
    half = [torch.zeros_like(p) for p in method.prompts()]
    answer, overlaps = method.masked(network, image, half)
    coarse, *bands = pywt.wavedecn(second.detach().numpy(), "haar", "periodization", 1, (2, 3, 4))
    halved = [{name: band / 2 for name, band in level.items()} for level in bands]
    edited = pywt.waverecn([coarse, *halved], "haar", "periodization", (2, 3, 4))

    module = network.network.get_submodule(network.stages[1])
    handle = module.register_forward_hook(lambda *_: torch.from_numpy(edited))
    expected = network(image)
    handle.remove()
    torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(answer.stages[0], first)
    assert (answer.logits - network(image).logits).abs().max() > 1e-2
    assert overlaps.item() == pytest.approx(1)


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


def acam(student: int, teacher: int, **options: object) -> nn.Module:
    return ACAMKD((student,), (teacher,), **options).double()


def test_fused_attention_is_an_explicit_softmax() -> None:
    s, t = (drawn(2, 6, 4, 4, 4, seed=n) for n in (1, 2))
    fusion = Fusion(6, 3).double()
    places_s, places_t = s.flatten(2).mT, t.flatten(2).mT
    q, k, v = fusion.query(places_t), fusion.key(places_s), fusion.value(places_s)
    expected = ((q @ k.mT / 3**0.5).softmax(-1) @ v).mT.reshape(t.shape)
    torch.testing.assert_close(fusion.fused(s, t), expected, rtol=1e-9, atol=1e-12)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a * b).sum() / ((a * a).sum() + (b * b).sum()))


def test_acam_is_its_naive_terms() -> None:
    s, t = (drawn(2, 4, 4, 4, 4, seed=n) for n in (1, 2))
    method = acam(4, 4, masks=3, adapters="none")
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
    assert method(staged(s), staged(t)).item() == pytest.approx(expected, rel=1e-6)


def test_a_student_that_agrees_is_left_alone_by_errors_and_masks() -> None:
    t = drawn(2, 4, 4, 4, 4, seed=1)
    s = t.clone().requires_grad_()
    value = acam(4, 4, adapters="none")(staged(s), staged(t))
    value.backward()
    assert s.grad is not None
    assert not s.grad.any()
    assert 0 < value <= 2  # the masks' overlap


def test_no_more_than_sixteen_places_along_an_axis_attend() -> None:
    s, t = (drawn(1, 4, 40, 2, 3, seed=n) for n in (1, 2))
    method, sizes = acam(4, 4), []
    method.fusions[0].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    assert method(staged(s), staged(t)).isfinite()
    assert sizes == [(16, 2, 3)]
