"""The constants of other methods: published weights, sums or means, nodes, regions.

Each is held to a closed form, which says what the authors' code computes where ours equals it, and
how far apart the two are where ours is another. Formulas are restated, no code is theirs.
"""

from itertools import pairwise

import numpy as np
import pytest
import pywt
import torch
from outputs import drawn, labels, staged

from dcd_core.method import SMALL
from dcd_core.methods import METHODS, build
from dcd_core.methods.regions import ReCo
from dcd_core.types import Output

HAAR = {"mode": "periodization", "wavelet": "haar"}


def ones_in_every_detail_band(side, levels):
    """A volume (1, 1, side, side, side) whose Haar detail coefficients are all 1."""
    smallest = (side >> levels,) * 3
    bands = [np.zeros(smallest)]
    for level in reversed(range(levels)):
        one = np.ones((side >> level + 1,) * 3)
        bands.append(dict.fromkeys(("aad", "ada", "add", "daa", "dad", "dda", "ddd"), one))
    return torch.from_numpy(pywt.waverecn(bands, **HAAR))[None, None]


def levels_of_a_plane(plane, levels):
    """Per level, finest first: the mean of |coefficients| over the three bands of a 2D Haar."""
    bands = pywt.wavedec2(plane, level=levels, **HAAR)[:0:-1]
    return np.array([np.mean(np.abs(level)) for level in bands])


@pytest.mark.parametrize(("name", "each"), [("freekd-prompt-free", 1.0), ("freekd", 0.5)])
def test_freekd_sums_levels_and_stages_at_weight_1_as_its_authors_do(name, each):
    student = ones_in_every_detail_band(32, 3)
    teacher = torch.zeros_like(student)  # of which every mask is one half
    method = build(name, (1,) * 4, (1,) * 4, stages=range(4), adapters="none")
    if name == "freekd":
        method.trained.fill_(True)
    assert method.weight == 1
    # Three levels of four stages, where means would be 1.
    value = method(staged(*[student] * 4), staged(*[teacher] * 4))
    assert value.item() == pytest.approx(12 * each, rel=1e-6)


def test_a_coarser_grid_has_fewer_levels_in_freekds_sum():
    stages = [ones_in_every_detail_band(32 >> i, max(1, 3 - i)) for i in range(4)]
    method = build("freekd-prompt-free", (1,) * 4, (1,) * 4, stages=range(4), adapters="none")
    value = method(staged(*stages), staged(*(0 * s for s in stages)))
    assert value.item() == pytest.approx(3 + 2 + 1 + 1, rel=1e-6)


def test_freekds_prompts_are_as_many_as_published():
    assert build("freekd", (4,), (8,)).prompts()[0].shape == (3, 6, 8)


def test_a_third_axis_makes_a_level_heavier_by_the_root_of_two():
    # Constant along the third axis, so that three of the seven bands have what 2D has.
    plane = drawn(32, 32, seed=1)
    volume = plane[None, None, :, :, None].expand(1, 1, 32, 32, 32)
    flat = levels_of_a_plane(plane.numpy(), 3)
    grown = 3 / 7 * flat * 2 ** (np.arange(1, 4) / 2)

    def of_levels(value):
        return np.diff([0, *(value(levels).item() for levels in (1, 2, 3))])

    def of_features(levels):
        method = build("freekd-prompt-free", (1,), (1,), levels=levels, adapters="none")
        return method(staged(volume), staged(torch.zeros_like(volume)))

    def of_outputs(levels):
        method = build("wavelet-outputs", (1,), (1,), levels=levels, regions=True)
        # Probabilities that differ by the volume: half of it above, half of it below one half.
        above, below = (0.5 + sign * volume / 20 for sign in (1, -1))
        return 10 * method(Output(above.logit(), ()), Output(below.logit(), ()))

    np.testing.assert_allclose(of_levels(of_features), grown, rtol=1e-5)
    np.testing.assert_allclose(of_levels(of_outputs), grown, rtol=1e-5)
    ratios = [b / a for a, b in pairwise(of_levels(of_features) / flat)]
    assert ratios == pytest.approx([2**0.5] * 2, rel=1e-5)


def test_attention_transfer_weighs_as_its_authors_maps_of_cifar_do():
    # One voxel of the student's maps is active, another of the teacher's: sum (q_s - q_t)^2 = 2.
    maps = [(torch.zeros(1, 1, n, n, 1), torch.zeros(1, 1, n, n, 1)) for n in (32, 16, 8)]
    theirs = 0.0
    for s, t in maps:
        s[0, 0, 0, 0], t[0, 0, 1, 1] = 3, 5
        q, p = (x.flatten().square() / x.flatten().square().norm() for x in (s, t))
        theirs += 1000 * (q - p).square().mean().item()
    method = build("at", (1,) * 3, (1,) * 3)
    ours = method(staged(*(s for s, _ in maps)), staged(*(t for _, t in maps))).item()
    assert ours == pytest.approx(2)
    assert method.weight * ours == pytest.approx(theirs, rel=1e-3)
    # And however many stages there are.
    half = build("at", (1,), (1,))(staged(maps[1][0]), staged(maps[1][1])).item()
    assert half == pytest.approx(ours)


def test_released_reco_has_no_background_in_its_foreground():
    # |a| = |t|, so attention is equal and 1; (a - t)^2 = 4 in the voxels that differ.
    teacher = torch.ones(1, 1, 4, 4, 4, dtype=torch.float64)
    target = torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)
    target[..., 0, :], target[..., 1, :2], target[..., 2, 0] = 1, 2, -1  # 16, 8 and 4 voxels
    frozen = {"adapters": "none", "context": "frozen"}
    sound = build("reco", (1,), (1,), **frozen).double()
    released = ReCo.released((1,), (1,)).double()

    def loss(method, label):
        differing = (target == label).nonzero()[0]
        student = teacher.clone()
        student[tuple(differing)] = -1
        return method(staged(student), staged(teacher), target).item()

    rest = 4 / 64  # the mean square of the last term
    # Either of two classes has half of the foreground; the background is one region of its own.
    assert loss(released, 1) == pytest.approx(rest + 4 / 16 / 2, rel=1e-6)
    assert loss(released, 2) == pytest.approx(rest + 4 / 8 / 2, rel=1e-6)
    assert loss(released, 0) == pytest.approx(rest + 4 / 40, rel=1e-6)
    assert loss(released, -1) == pytest.approx(rest + 4 / 40, rel=1e-6)
    assert loss(sound, 0) == pytest.approx(rest + 4 / 36, rel=1e-6)
    assert loss(sound, -1) == pytest.approx(rest, rel=1e-6)


@pytest.mark.parametrize(("masks", "corner"), [("sound", 0), ("released", 4)])
def test_labels_of_a_stage_are_those_of_deep_supervision_in_released_reco_alone(masks, corner):
    # A stage of an eighth: its first voxel takes the label of voxel 0, or of voxel 4 of 0 to 7.
    teacher = torch.ones(1, 1, 4, 4, 4, dtype=torch.float64)
    student = teacher.clone()
    student[..., 0, 0, 0] = -1
    method = build("reco", (1,), (1,), adapters="none", context="frozen", masks=masks).double()
    found = []
    for n in (0, 4):
        target = torch.zeros(1, 1, 32, 32, 32, dtype=torch.long)
        target[..., n, n, n] = 1
        found.append(method(staged(student), staged(teacher), target).item())
    seen, unseen = 4 / 64 + 4, 4 / 64 + 4 / 64  # all of the foreground; a 64th of the background
    assert found == pytest.approx([seen, unseen] if corner == 0 else [unseen, seen], rel=1e-6)


def test_weights_are_those_of_the_terms_that_are_kept():
    # CIRKD: 1 for the term of the mini-batch, 0.1 for those of the memory bank, left out here.
    assert METHODS["cirkd"].weight == 1
    # Pairwise similarity: the paper's; its code has 1, and 0.5 in the script.
    assert METHODS["skd"].weight == 10
    assert METHODS["reco"].weight == build("reco-released", (1, 1), (1, 1)).weight == 0.01


def test_pairs_are_of_at_most_eight_nodes_an_axis_and_of_two_in_the_authors_code():
    s, t = drawn(1, 3, 16, 16, 16, seed=1), drawn(1, 5, 16, 16, 16, seed=2)

    def loss(s, t, **nodes):
        return build("skd", (3,), (5,), **nodes)(staged(s), staged(t)).item()

    # The default sees blocks of 2^3 voxels here, as the paper has patches of 2 x 2.
    blocks = [x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((5, 6, 7)) for x in (s, t)]
    assert loss(s, t) == pytest.approx(loss(*blocks, nodes=99), rel=1e-9)
    # Half of the map, as in the code: 8 nodes, of which all are pairs, themselves included.
    halves = [x.unflatten(2, (2, 8)).unflatten(4, (2, 8)).unflatten(6, (2, 8)) for x in (s, t)]
    u, v = (h.mean((3, 5, 7)).flatten(2) for h in halves)
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (u, v))
    expected = (u.mT @ u - v.mT @ v).square().sum() / 8**2
    assert loss(s, t, nodes=2) == pytest.approx(expected.item(), rel=1e-9)


def test_relational_terms_are_one_to_two_in_both_published_scales():
    s, t = drawn(2, 3, 4, 4, 4, seed=1), drawn(2, 5, 4, 4, 4, seed=2)

    def loss(**weights):
        return build("rkd", (3,), (5,), nodes=2, **weights)(staged(s), staged(t)).item()

    far, turned = loss(distance=1.0, angle=0.0), loss(distance=0.0, angle=1.0)
    assert loss() == pytest.approx(25 * far + 50 * turned, rel=1e-9)  # RepDistiller
    assert loss(distance=1.0, angle=2.0) == pytest.approx(loss() / 25, rel=1e-9)  # the authors


@pytest.mark.parametrize("name", ["skd", "rkd", "cirkd", "ifvd"])
@pytest.mark.parametrize("size", [0.0, 0.1 * SMALL])
def test_a_node_without_a_direction_gets_no_gradient_of_one(name, size):
    s, t = drawn(2, 3, 4, 4, 4, seed=1), drawn(2, 5, 4, 4, 4, seed=2)
    s[0, :, 0, 0, 0] = size / 3**0.5
    s[1, :, :2] = s[1, :, :1, :1, :1].clone()  # nodes that are equal, as of an empty background
    s.requires_grad_()
    build(name, (3,), (5,))(staged(s), staged(t), labels(size=4)).backward()
    gradients = s.grad.norm(dim=1)
    assert gradients.max() < 50 * gradients.median()
    if name in ("skd", "cirkd"):  # the others see how far the node is, or the mean of its class
        assert gradients[0, 0, 0, 0] == 0
