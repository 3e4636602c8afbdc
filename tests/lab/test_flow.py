"""Flow: band shares against PyWavelets, gradients against networks whose skips are really cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
import torch

from dcd_core.dcd import DCD
from dcd_core.models import dynunet, resenc
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import BANDS, wavedec3, waverec3
from dcd_lab.flow import (
    PARTS,
    band_shares,
    best_projection,
    cosine,
    explained,
    moments,
    stage_gradients,
    through_encoder,
)

CHANNELS = (3, 4, 6, 8)
MODELS = {
    "dynunet": lambda: dynunet(2, 3, channels=CHANNELS),
    "plain": lambda: dynunet(2, 3, channels=CHANNELS, residual=False),
    "resenc": lambda: resenc(2, 3, channels=CHANNELS, blocks=(1, 2, 1, 1)),
}
EACH = pytest.mark.parametrize("name", MODELS)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(one, other, **tolerance):
    torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
def test_shares_are_those_of_pywavelets(wavelet):
    x = noise(2, 3, 32, 64, 32) + torch.arange(3.0)[:, None, None, None]
    centred = x - x.mean((2, 3, 4), keepdim=True)
    energy = dict.fromkeys(BANDS, 0.0)
    for volume in centred.flatten(0, 1).numpy():
        coarse, *details = pywt.wavedecn(volume, wavelet, "periodization", 2)
        for level in ({"aaa": coarse}, *details):
            for band, values in level.items():
                energy[band] += np.square(values).sum()
    offset = (x - centred).square().sum().item()
    expected = torch.tensor([offset, *energy.values()], dtype=torch.float64)
    shares = band_shares(x, wavelet, levels=2)
    close(shares, expected / x.square().sum(), rtol=1e-6, atol=1e-8)
    close(shares.sum().item(), 1.0)


def test_a_constant_is_offset_and_a_checkerboard_is_the_finest_diagonal():
    sign = 1.0 - 2 * (torch.arange(8) % 2)
    board = torch.einsum("i,j,k->ijk", sign, sign, sign)[None, None]
    for x, part in ((torch.full_like(board, 3.0), "offset"), (board, "ddd")):
        shares = dict(zip(PARTS, band_shares(x, "haar").tolist(), strict=True))
        assert shares.pop(part) == pytest.approx(1, abs=1e-6)
        assert max(shares.values()) < 1e-6


def test_an_offset_changes_no_other_part_than_its_own():
    x = noise(1, 2, 8, 8, 8)
    before, after = band_shares(x)[1:], band_shares(x + 10)[1:]
    close(after / after.sum(), before / before.sum())
    assert band_shares(0 * x).isnan().all()


def with_detached_skips(model, x, monkeypatch):
    """The same forward pass, every skip connection detached where it enters the decoder."""
    whole = torch.cat
    # resenc joins [from below, skip] by hand; DynUNet's blocks take (from below, skip).
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0], inputs[1].detach()))
        for name, module in model.network.named_modules()
        if name.startswith("upsamples.") and name.count(".") == 1
    ]
    with monkeypatch.context() as patched:
        if not hooks:
            patched.setattr(torch, "cat", lambda xs, dim: whole([xs[0], xs[1].detach()], dim))
        output = model(x)
    for hook in hooks:
        hook.remove()
    return output


def made(name):
    torch.manual_seed(3)
    return MODELS[name]().double(), noise(1, 2, 16, 16, 16, seed=4)


def loss_of(logits):
    return (logits * noise(*logits.shape, seed=5)).sum()


@EACH
def test_through_the_encoder_is_a_pass_with_detached_skips(name, monkeypatch):
    model, x = made(name)
    output, cut = model(x), with_detached_skips(model, x, monkeypatch)
    assert torch.equal(output.logits, cut.logits)
    total = stage_gradients(loss_of(output.logits), output.stages)
    carried = through_encoder(total[-1], output.stages)
    expected = torch.autograd.grad(loss_of(cut.logits), cut.stages)
    for whole, one, other in zip(total, carried, expected, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)
        assert one.abs().max() > 0
        assert whole is total[-1] or not torch.allclose(whole, one, rtol=1e-3)


def test_with_skips_and_encoder_cut_nothing_arrives(monkeypatch):
    model, x = made("resenc")
    deepest = model.network.get_submodule(model.stages[-1])
    handle = deepest.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    cut = with_detached_skips(model, x, monkeypatch)
    handle.remove()
    gradients = stage_gradients(loss_of(cut.logits), cut.stages)
    assert [g.abs().max().item() > 0 for g in gradients] == [False, False, False, True]
    assert [g.shape for g in gradients] == [s.shape for s in cut.stages]


def test_distillation_reaches_finer_stages_through_the_encoder_alone():
    """The term of stage i acts at stage i itself and, through the encoder, before it."""
    model, x = made("dynunet")
    wide, output = tuple(2 * c for c in CHANNELS), model(x)
    grids = [s.shape[2:] for s in output.stages]
    teacher = tuple(noise(1, c, *grid, seed=6) for c, grid in zip(wide, grids, strict=True))
    distil = DCD(CHANNELS, wide, wavelet="haar", levels=2).double()
    for stage, term in enumerate(distil.per_stage(output, Output(output.logits, teacher))):
        gradients = stage_gradients(term.distance, output.stages)
        assert [g.abs().max().item() > 0 for g in gradients] == [j <= stage for j in range(4)]
        alone = through_encoder(gradients[stage], output.stages, start=stage)
        for one, other in zip(alone, gradients[: stage + 1], strict=True):
            close(one, other, rtol=1e-9, atol=1e-15)
        # The published bands leave the coarse and the finest diagonal band of this stage alone,
        # not those of the stages before it.
        own = band_shares(gradients[stage], "haar", levels=term.levels)
        assert own[[0, 1, 8]].max() < 1e-20
        if stage:
            before = band_shares(gradients[stage - 1], "haar", levels=term.levels + 1)
            assert min(before[0] + before[1], before[8]) > 1e-6


def test_gradients_of_a_chain_are_its_factors():
    x = torch.ones(1, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    stages = (2 * x, 6 * x)
    stages = (stages[0], 3 * stages[0])
    loss = (5 * stages[1] + 7 * stages[0]).sum()
    total = stage_gradients(loss, stages)
    assert [g.unique().item() for g in total] == [22, 5]
    assert [g.unique().item() for g in through_encoder(total[1], stages)] == [15, 5]
    (only,) = through_encoder(total[0], stages, start=0)
    assert only is total[0]
    with pytest.raises(ContractError, match=r"gradient at stage 0.*start="):
        through_encoder(total[1][..., :1], stages, start=0)


def test_cosine():
    a, b = noise(1, 2, 4, 4, 4), noise(1, 2, 4, 4, 4, seed=1)
    assert cosine(a, 3 * a) == pytest.approx(1)
    assert cosine(a, -a) == pytest.approx(-1)
    right = b - (a * b).sum() / (a * a).sum() * a
    assert abs(cosine(a, right)) < 1e-12
    assert math.isnan(cosine(a, 0 * a))


def test_a_projection_that_exists_is_found_and_explains_all():
    weight = noise(5, 3, seed=1)
    student = noise(2, 3, 8, 8, 8)
    teacher = torch.einsum("ts,bsdhw->btdhw", weight, student) + 4  # an offset changes nothing
    products = moments(student, teacher)
    projection = best_projection(products, 3)
    close(projection, weight.expand(8, 5, 3))
    close(explained(products, projection), torch.ones(8, dtype=torch.float64))
    close(explained(products, 0 * projection), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("levels", [1, 2])
def test_every_band_has_its_own_answer(levels):
    """A teacher that is the student in the coarse band and something else in all others."""
    student, other = noise(1, 3, 16, 16, 16), noise(1, 3, 16, 16, 16, seed=1)
    student, other = (x - x.mean((2, 3, 4), keepdim=True) for x in (student, other))
    mine, others = wavedec3(student, levels=levels), wavedec3(other, levels=levels)
    teacher = waverec3(others._replace(coarse=mine.coarse))
    products = moments(student, teacher, levels=levels)
    share = explained(products, best_projection(products, 3))
    assert share[0].item() == pytest.approx(1)
    assert share[1:].max() < 0.05
    # The energies are those of the shares.
    own = products[:, 3:, 3:].diagonal(dim1=-2, dim2=-1).sum(-1)
    close(own / own.sum(), band_shares(teacher, levels=levels)[1:])
    close(products.sum(0)[:3, :3], torch.einsum("bsdhw,btdhw->st", student, student))


def test_the_projection_is_the_least_squares_one_and_patches_add_up():
    x, y = noise(2, 4, 4, 4, 4), noise(2, 6, 4, 4, 4, seed=1)
    x, y = (v - v.mean((2, 3, 4), keepdim=True) for v in (x, y))
    parts = [moments(x[i : i + 1], y[i : i + 1], "haar").sum(0) for i in range(2)]
    rows = [v.transpose(0, 1).flatten(1).numpy().T for v in (x, y)]
    expected, *_ = np.linalg.lstsq(*rows, rcond=None)
    projection = best_projection(parts[0] + parts[1], 4)
    close(projection, torch.from_numpy(expected.T.copy()))
    error = np.square(rows[0] @ expected - rows[1]).sum() / np.square(rows[1]).sum()
    assert explained(parts[0] + parts[1], projection).item() == pytest.approx(1 - error)


def test_equal_channels_share_the_weight():
    x = noise(1, 2, 4, 4, 4)
    products = moments(torch.cat([x, x], 1), 2 * x, "haar")
    projection = best_projection(products.sum(0), 4)
    close(projection, torch.eye(2, dtype=torch.float64).repeat(1, 2), atol=1e-6, rtol=0)


def test_moments_need_one_grid():
    with pytest.raises(ContractError, match="teacher features"):
        moments(noise(1, 2, 8, 8, 8), noise(1, 2, 4, 4, 4))
