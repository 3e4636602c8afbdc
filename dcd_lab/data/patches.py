"""Patches: batches that depend on a seed and a step, and on nothing else.

Batch 700 of seed 3 is the same after a restart, in another process, and for every method. So two
students that differ have seen the same data. Everything random about a patch is drawn first, into a
`Draw`; `cut` then applies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from dcd_core.errors import at_least, flag, not_negative, part, several, whole
from dcd_core.types import UNLABELLED, Case, ContractError, Size3, checked_case


class Augment(NamedTuple):
    """How far training patches are changed: `flips` on all three axes, the rest in z-scores.

    Channel gains are uniform in 1 +- `gain`, shifts in +- `shift`; half of the patches get white
    noise with a standard deviation up to `noise`. The zeros around the brain stay zeros.
    """

    flips: bool = True
    gain: float = 0.1
    shift: float = 0.1
    noise: float = 0.1


MILD = Augment()
NONE = Augment(flips=False, gain=0.0, shift=0.0, noise=0.0)


class Draw(NamedTuple):
    """Everything random about one patch.

    `case` is an index; `corner` the first voxel, negative where the case is smaller than the patch;
    `flips` says which axes are mirrored; `noise` is a standard deviation.
    """

    case: int
    corner: Size3
    flips: tuple[bool, bool, bool]
    gain: Float32[np.ndarray, " c"]
    shift: Float32[np.ndarray, " c"]
    noise: float
    noise_seed: int


class Patches:
    """An endless sequence of training batches, by step: `patches[step]`.

    `cases` are prepared and labelled, with equal channels. A batch holds `batch` patches of `patch`
    voxels, each from a case drawn uniformly. With probability `foreground` the patch is centred, as
    far as the borders allow, on a voxel of a label drawn uniformly from those of the case. Others
    lie anywhere in the case, which is centred in zeros where it is smaller than the patch.
    After these come `batch` patches of the `unlabelled` cases, if there are any, from anywhere in
    the case: their target is `UNLABELLED`, whatever label a case has. They move no other patch.
    Raises ContractError when there is no case, a case has no label or other channels, or a number
    is out of range.
    Source: Isensee et al., nnU-Net, Nature Methods, 2021 (a third of the patches on foreground).
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        patch: Size3,
        batch: int,
        seed: int,
        foreground: float = 1 / 3,
        augment: Augment = MILD,
        unlabelled: Sequence[Case] = (),
    ) -> None:
        known, unknown = (_checked(these) for these in (cases, unlabelled))
        _refuse_unfit(known, unknown)
        # Without their labels, which nothing may read.
        self.cases = (*known, *(case._replace(label=None) for case in unknown))
        self.labelled_cases = len(known)
        i, j, k = whole("patch", patch, count=3)
        self.patch, self.batch = (i, j, k), at_least("batch", batch, 1)
        self.seed = at_least("seed", seed, 0, 2**63)
        self.foreground = part("foreground", foreground)
        self.augment = _checked_augment(augment)
        self._voxels = [_voxels_by_label(case) for case in self.cases]

    def __getitem__(
        self, step: int
    ) -> tuple[Float32[Tensor, "b c d h w"], Int64[Tensor, "b 1 d h w"]]:
        """Return the images and labels of one step."""
        return self._cut(self.draws(step))

    def labelled(
        self, step: int
    ) -> tuple[Float32[Tensor, "b c d h w"], Int64[Tensor, "b 1 d h w"]]:
        """Return the images and labels of one step without the patches that have no label."""
        return self._cut(self.draws(step)[: self.batch])

    def draws(self, step: int) -> list[Draw]:
        """Return what is random about the patches of one step."""
        step = at_least("step", step, 0)
        known, count = range(self.labelled_cases), len(self.cases)
        drawn = self._draws([self.seed, step], known)
        if count > len(known):  # from a stream of their own: they move no other patch
            drawn += self._draws([self.seed, step, 1], range(len(known), count))
        return drawn

    def _draws(self, entropy: list[int], cases: range) -> list[Draw]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        return [self._draw(rng, cases) for _ in range(self.batch)]

    def _cut(
        self, draws: Sequence[Draw]
    ) -> tuple[Float32[Tensor, "b c d h w"], Int64[Tensor, "b 1 d h w"]]:
        images = np.empty((len(draws), len(self.cases[0].image), *self.patch), np.float32)
        labels = np.empty((len(draws), 1, *self.patch), np.int64)
        for row, draw in enumerate(draws):
            case = self.cases[draw.case]
            images[row], label = cut(case, draw, self.patch)
            labels[row, 0] = UNLABELLED if case.label is None else label
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _draw(self, rng: np.random.Generator, cases: range) -> Draw:
        case = cases[int(rng.integers(len(cases)))]
        corner = self._corner(rng, case)
        # Everything is drawn whatever `augment` says: switching it off moves no patch.
        mirrored = (rng.random(3) < 0.5) & self.augment.flips
        gain, shift = rng.uniform(-1, 1, (2, len(self.cases[case].image))).astype(np.float32)
        noisy, noise = rng.random(2)
        return Draw(
            case,
            corner,
            (bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])),
            1 + self.augment.gain * gain,
            self.augment.shift * shift,
            self.augment.noise * float(noise) if noisy < 0.5 else 0.0,
            int(rng.integers(2**63)),
        )

    def _corner(self, rng: np.random.Generator, case: int) -> Size3:
        shape = self.cases[case].image.shape[1:]
        spare = np.subtract(shape, self.patch)
        last = np.maximum(spare, 0)
        corner = rng.integers(0, last + 1)
        if rng.random() < self.foreground and self._voxels[case]:
            voxels = self._voxels[case][rng.integers(len(self._voxels[case]))]
            centre = np.unravel_index(voxels[rng.integers(len(voxels))], shape)
            corner = np.clip(np.subtract(centre, np.floor_divide(self.patch, 2)), 0, last)
        i, j, k = np.where(spare < 0, spare // 2, corner)
        return int(i), int(j), int(k)


def cut(
    case: Case, draw: Draw, patch: Size3
) -> tuple[Float32[np.ndarray, "c d h w"], UInt8[np.ndarray, "d h w"]]:
    """Return the image and label of one patch of a case, as drawn; zeros without a label."""
    image = np.zeros((len(case.image), *patch), np.float32)
    label = np.zeros(patch, np.uint8)
    source, target = _overlap(draw.corner, patch, case.image.shape[1:])
    image[(slice(None), *target)] = case.image[(slice(None), *source)]
    if case.label is not None:
        label[target] = case.label[source]
    brain = image.any(axis=0)
    image *= draw.gain[:, None, None, None]
    image += draw.shift[:, None, None, None]
    if draw.noise:
        rng = np.random.default_rng(draw.noise_seed)
        image += np.float32(draw.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    image *= brain
    axes = tuple(axis for axis in range(3) if draw.flips[axis])
    return np.flip(image, tuple(axis + 1 for axis in axes)), np.flip(label, axes)


def _overlap(
    corner: Size3, patch: Size3, shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of a case that a patch covers, in voxels of the case and of the patch."""
    starts = [max(first, 0) for first in corner]
    stops = [min(c + p, s) for c, p, s in zip(corner, patch, shape, strict=True)]
    source = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    target = tuple(slice(a - c, b - c) for a, b, c in zip(starts, stops, corner, strict=True))
    return source, target


def _voxels_by_label(case: Case) -> list[Int32[np.ndarray, " n"]]:
    """Return the flat indices of the voxels of each label that the case has, background aside."""
    flat = case.label.ravel() if case.label is not None else np.empty(0, np.uint8)
    present = np.flatnonzero(np.bincount(flat)[1:]) + 1
    return [np.flatnonzero(flat == value).astype(np.int32) for value in present]


def _checked(cases: Sequence[Case]) -> tuple[Case, ...]:
    each = () if cases is None else several("cases", cases, "prepared cases")
    return tuple(map(checked_case, each))


def _checked_augment(augment: Augment) -> Augment:
    if not isinstance(augment, Augment):
        got = type(augment).__name__
        raise ContractError("augment", got, "an Augment", "data.patches.NONE for no changes")
    flag("flips", augment.flips)
    for name in ("gain", "shift", "noise"):
        not_negative(name, getattr(augment, name))
    return augment


def _refuse_unfit(cases: Sequence[Case], unlabelled: Sequence[Case]) -> None:
    if not cases:
        raise ContractError("cases", "none", "at least one prepared case", "data.prepare")
    for case in cases:
        if case.label is None:
            attempt = "`unlabelled` for such cases, or check where the label files are"
            raise ContractError(f"case {case.id}", "no label", "a labelled case", attempt)
    for case in (*cases, *unlabelled):
        if len(case.image) != len(cases[0].image):
            expected = f"{len(cases[0].image)}, as in {cases[0].id}"
            attempt = "train on one task at a time"
            raise ContractError(f"case {case.id}", f"{len(case.image)} channels", expected, attempt)
