"""What is detail in 3D? A wavelet transform splits a volume into one coarse and seven detail bands.

Along each axis a signal is filtered into a low half `a` (approximation) and a high half `d`
(detail) and every second sample is kept. Doing so along D, H and W gives eight bands, `aaa` to
`ddd`; the coarse band `aaa` may be split again, level after level. Names, boundary modes and values
are those of PyWavelets. The transform of one axis is a small matrix (`pywt` applied to the
identity), so a level is three matrix products, for any wavelet, mode, device and precision.

Source: Mallat, IEEE TPAMI 11(7), 1989; Daubechies, Ten Lectures on Wavelets, SIAM, 1992;
Lee et al., PyWavelets, JOSS 4(36), 2019.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import pywt
import torch
from jaxtyping import Float
from torch import Tensor

from dcd_core.errors import at_least, one_of, whole, within
from dcd_core.types import ContractError, Size3, Volume, dense

BANDS = ("aaa", "aad", "ada", "add", "daa", "dad", "dda", "ddd")
"""The eight bands in order of their index 4D + 2H + W, with a = 0 and d = 1."""

MOST_LEVELS = 62
"""No axis can be halved more often."""

Wavelet: TypeAlias = str | pywt.Wavelet | Sequence[str | pywt.Wavelet]
"""A name or an object of PyWavelets, or one per axis (D, H, W)."""


class Pyramid(NamedTuple):
    """Several levels: `coarse` (b, c, d, h, w), `details` (b, c, 7, d, h, w), finest first."""

    coarse: Tensor
    details: tuple[Tensor, ...]


def dwt3(
    x: Volume, wavelet: Wavelet = "db4", mode: str = "periodization"
) -> Float[Tensor, "b c 8 _ _ _"]:
    """Split volumes into their eight bands, one level.

    `x` (b, c, d, h, w) -> (b, c, 8, d', h', w'), equal to `pywt.dwtn`, in float32 or better. Raises
    ContractError for an unknown wavelet or mode, and where (anti)reflect meets one voxel.
    """
    return to_bands(_transform(analysis, dense("volume", x), wavelet, mode))


def idwt3(
    bands: Float[Tensor, "b c 8 d h w"],
    wavelet: Wavelet = "db4",
    mode: str = "periodization",
    *,
    size: Size3 | None = None,
) -> Float[Tensor, "b c _ _ _"]:
    """Rebuild volumes from their eight bands, one level: the inverse of `dwt3`.

    `bands` (b, c, 8, d', h', w') -> (b, c, d, h, w), equal to `pywt.idwtn` and cropped to `size`,
    if given: odd extents come back one voxel long. Raises ContractError for other bands, an unknown
    wavelet or mode, and for a `size` whose bands these cannot be.
    """
    dense("bands", bands, "b c 8 d h w")
    within("number of bands", bands.shape[2], bands.shape[2] == len(BANDS), "8, in their order")
    x = _transform(synthesis, from_bands(bands), wavelet, mode)
    return x if size is None else _cropped(x, size)


def _cropped(x: Volume, size: Size3) -> Float[Tensor, "b c _ _ _"]:
    """A rebuilt volume without the voxel that an odd axis has got."""
    d, h, w = whole("size", size, count=3)
    fits = all(have - 1 <= want <= have for want, have in zip((d, h, w), x.shape[2:], strict=True))
    within("size", (d, h, w), fits, f"{tuple(x.shape[2:])}, or one less along odd axes")
    return x[:, :, :d, :h, :w]


def wavedec3(
    x: Volume, wavelet: Wavelet = "db4", *, levels: int, mode: str = "periodization"
) -> Pyramid:
    """Split volumes into a pyramid of `levels` levels, equal to `pywt.wavedecn`.

    `x` (b, c, d, h, w). Raises ContractError when `levels` is not positive, and as `dwt3` does.
    """
    details = []
    for _ in range(at_least("levels", levels, 1, MOST_LEVELS)):
        bands = dwt3(x, wavelet, mode)
        details.append(bands[:, :, 1:])
        x = bands[:, :, 0]
    return Pyramid(x, tuple(details))


def waverec3(
    pyramid: Pyramid,
    wavelet: Wavelet = "db4",
    mode: str = "periodization",
    *,
    size: Size3 | None = None,
) -> Volume:
    """Rebuild volumes from a pyramid: the inverse of `wavedec3`, equal to `pywt.waverecn`.

    -> (b, c, d, h, w); `size` of the finest level is needed for odd extents. Errors as in `idwt3`,
    and for bands that are of no pyramid.
    """
    if not isinstance(pyramid, Pyramid):
        raise ContractError("pyramid", type(pyramid).__name__, "a Pyramid", "wavedec3")
    x = dense("coarse band", pyramid.coarse)
    if not pyramid.details:
        return x if size is None else _cropped(x, size)
    for level, detail in reversed([*enumerate(pyramid.details)]):
        _refuse_unfit(dense("details", detail, "b c 7 d h w"), x)
        d, h, w = detail.shape[3:]
        bands = torch.cat([x[:, :, None, :d, :h, :w], detail], dim=2)
        x = idwt3(bands, wavelet, mode, size=size if level == 0 else None)
    return x


def _refuse_unfit(detail: Tensor, x: Tensor) -> None:
    """Raise ContractError unless volumes `x` are as large as the bands of a level, or odd."""
    (b, c, count, *grid), beyond = detail.shape, (0, 1)
    fits = (b, c, count) == (*x.shape[:2], len(BANDS) - 1) and detail.device == x.device
    if not fits or any(m - n not in beyond for m, n in zip(x.shape[2:], grid, strict=True)):
        got, expected = f"details {tuple(detail.shape)}", f"7 bands on the grid of {tuple(x.shape)}"
        raise ContractError("level of a pyramid", got, expected, "the Pyramid that wavedec3 made")


def max_level(size: int | Sequence[int], wavelet: Wavelet) -> int:
    """How many levels a volume can be split before the filters outgrow it (`pywt.dwtn_max_level`).

    `size`: one extent or (D, H, W), in voxels. 0 where none fits. The loss goes further (`grids`).
    """
    one = isinstance(size, int | np.integer)
    extents = whole("size", [size] * 3 if one else size, count=3)  # type: ignore[arg-type,list-item]
    axes = zip(extents, axis_names(wavelet), strict=True)
    return min(int(pywt.dwt_max_level(n, taps(name))) for n, name in axes)


def axis_names(wavelet: Wavelet) -> tuple[str, str, str]:
    """One wavelet name per axis (D, H, W); raises ContractError unless 1 or 3 names are given."""
    each = (wavelet,) * 3 if isinstance(wavelet, str | pywt.Wavelet) else wavelet
    fits = isinstance(each, Sequence) and all(isinstance(x, str | pywt.Wavelet) for x in each)
    within("wavelet", each, fits and len(each) == 3, "one name, or three")
    d, h, w = (discrete(one if isinstance(one, str) else one.name).name for one in each)
    for one in each:  # it may have the name of another, and filters of its own
        if isinstance(one, pywt.Wavelet) and one.filter_bank != discrete(one.name).filter_bank:
            raise ContractError("wavelet", "filters of its own", "those of PyWavelets", "its name")
    return d, h, w


def taps(name: str) -> int:
    """Length of the analysis filters of one wavelet, in samples."""
    return int(discrete(name).dec_len)


@lru_cache
def discrete(name: str) -> pywt.Wavelet:
    """The discrete wavelet of that name; raises ContractError where PyWavelets has none."""
    try:
        return pywt.Wavelet(name)
    except (ValueError, TypeError):
        expected = "a discrete wavelet of PyWavelets such as 'haar', 'db4', 'bior2.2'"
        attempt = "pywt.wavelist(kind='discrete') lists them all"
        raise ContractError("wavelet", repr(name), expected, attempt) from None


@lru_cache(maxsize=512)
def analysis(n: int, name: str, mode: str) -> np.ndarray:
    """The transform of one axis as a matrix (2m, n), float64: m low rows, then m high rows."""
    fits = n > 1 or not mode.endswith("reflect")
    within("mode", mode, fits, "'symmetric', for example, for an axis of one voxel")
    return np.concatenate(pywt.dwt(np.eye(n), discrete(name), mode=mode, axis=0))


@lru_cache(maxsize=512)
def synthesis(m: int, name: str, mode: str) -> np.ndarray:
    """The inverse transform of one axis as a matrix (n, 2m), float64; n is that of `pywt.idwt`."""
    least = 1 if mode == "periodization" else taps(name) // 2
    within("coefficients along an axis", m, m >= least, f"{least} for {name} at least")
    low, high = np.split(np.eye(2 * m), 2)
    return pywt.idwt(low, high, discrete(name), mode=mode, axis=0)


def _transform(
    build: Callable[..., np.ndarray], x: Volume, wavelet: Wavelet, mode: str
) -> Float[Tensor, "b c _ _ _"]:
    """The transform along all axes by matrices that `build` makes, in float32 or better."""
    one_of("mode", mode, *pywt.Modes.modes)
    size = [n // 2 if build is synthesis else n for n in x.shape[2:]]
    axes = [*zip(size, axis_names(wavelet), strict=True)]
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        return apply_separable(x, [matrix(build, n, name, mode, like=x) for n, name in axes])


def apply_separable(
    x: Float[Tensor, "b c d h w"], matrices: Sequence[Float[Tensor, "_ _"]]
) -> Float[Tensor, "b c _ _ _"]:
    """Multiply every axis (D, H, W) of `x` by its matrix."""
    along_d, along_h, along_w = matrices  # the inner axis comes first, as it is contiguous
    x = torch.matmul(along_h, torch.matmul(x, along_w.T))
    b, c, d, h, w = x.shape
    # D as the row of one (d, h * w) product per channel: no transposition, no copy.
    return torch.matmul(along_d, x.reshape(b, c, d, h * w)).reshape(b, c, len(along_d), h, w)


def matrix(build: Callable[..., np.ndarray], *key: Hashable, like: Tensor) -> Float[Tensor, "_ _"]:
    """The matrix `build(*key)` in the precision and on the device of `like`, made once and kept."""
    return _kept(build, key, like.dtype, like.device)


# A tensor made under inference_mode could never take part in a later backward pass.
@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def _kept(
    build: Callable[..., np.ndarray], key: tuple, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.as_tensor(build(*key), dtype=dtype, device=device).contiguous()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and whole numbers raised to float32; what is finer stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def to_bands(x: Tensor) -> Tensor:
    """Volumes with low halves first (b, c, 2d, 2h, 2w) to their bands (b, c, 8, d, h, w)."""
    b, c, d, h, w = x.shape
    octants = x.reshape(b, c, 2, d // 2, 2, h // 2, 2, w // 2)
    return octants.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(b, c, 8, d // 2, h // 2, w // 2)


def from_bands(bands: Tensor) -> Tensor:
    """The inverse of `to_bands`."""
    b, c, _, d, h, w = bands.shape
    octants = bands.reshape(b, c, 2, 2, 2, d, h, w)
    return octants.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(b, c, 2 * d, 2 * h, 2 * w)
