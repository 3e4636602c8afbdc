"""What the student answers: methods that compare full-resolution logits."""

from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from dcd_core.errors import Check, Count, NotNegative, Positive, flag
from dcd_core.method import Ignored, Method, Scalar
from dcd_core.types import ContractError, Output, Volume
from dcd_core.wavelet import Wavelet, max_level, wavedec3
from dcd_core.wavelet.transform import axis_names

Counts = Bool[Tensor, "b d h w"]


class LogitMethod(Method):
    """A loss of full-resolution logits (b, k, d, h, w), written in `logits`.

    `regions`: the k channels are overlapping regions, a sigmoid each, not classes of one softmax.
    `ignore`: label of voxels that count neither in sums nor in means, None where all do.
    """

    needs_logits: bool = True
    regions: Annotated[bool | None, Check(flag)] = False
    ignore: Ignored = -1

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        s, t = student.logits, teacher.logits
        if s.shape != t.shape or s.ndim != 5 or not len(s) or s.device != t.device:
            expected = f"the student's {tuple(s.shape)}"
            attempt = "two networks of one task on one patch, and a teacher whose decoder runs"
            raise ContractError("logits of the teacher", tuple(t.shape), expected, attempt)
        if self.regions is False and s.shape[1] < 2:  # a softmax of one class is always 1
            raise ContractError("classes of a softmax", 1, "at least two", "regions=True")
        if target is None or self.ignore is None:
            return self.logits(s, t, s.new_ones((len(s), *s.shape[2:]), dtype=torch.bool))
        return self.logits(s, t, target[:, 0] != self.ignore)

    def logits(self, student: Volume, teacher: Volume, counts: Counts) -> Scalar:
        """The loss; `counts` says which voxels count."""
        raise NotImplementedError

    def probabilities(self, logits: Volume) -> Volume:
        """Probabilities (b, k, d, h, w) of k classes or regions."""
        return logits.sigmoid() if self.regions else logits.softmax(1)


class LogitsKD(LogitMethod):
    """The student answers every voxel with the teacher's softened probabilities.

        T^2 * mean_v sum_k p_t log(p_t / p_s),    p = softmax(logits / T), or with `regions`
        T^2 * mean_(v,k) [q_t log(q_t / q_s) + (1 - q_t) log((1 - q_t) / (1 - q_s))],
        q = sigmoid(logits / T).

    Source: Hinton, Vinyals, Dean, NeurIPS workshop 2014, arXiv 1503.02531.
    3D change: every voxel is an example, in chunks along D.
    Differs from the authors' code: there is none. Public ones divide by other counts as well.
    Options: `temperature` T. `weight` 1 belongs to the mean at T = 2.
    """

    weight: ClassVar[float] = 1.0
    temperature: Positive = 2.0

    def logits(self, student: Volume, teacher: Volume, counts: Counts) -> Scalar:
        weights = counts[:, None].to(student.dtype)
        total = self.in_chunks(self._divergence, student, teacher, weights)
        examples = counts.sum() * (student.shape[1] if self.regions else 1)
        return self.temperature**2 * total / examples.clamp(min=1)

    def _divergence(self, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        s, t = student / self.temperature, teacher / self.temperature
        pairs = [(log_softmax(s, 1), log_softmax(t, 1))]
        if self.regions:
            pairs = [(logsigmoid(s), logsigmoid(t)), (logsigmoid(-s), logsigmoid(-t))]
        return torch.stack([(weights * q.exp() * (q - p)).sum() for p, q in pairs]).sum()


class DIST(LogitMethod):
    """The student keeps the teacher's relations, among classes and among voxels, not its values.

        T^2 * [beta * (1 - mean_(b,v) r(p_s(b, :, v), p_t(b, :, v)))
               + gamma * (1 - mean_(b,k) r(p_s(b, k, :), p_t(b, k, :)))],
        p = softmax(logits / T), or sigmoid for `regions`; r Pearson's correlation.

    Source: Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536.
    3D change: none but the voxels.
    Differs from the authors' code: voxels are related within a sample, there in the whole batch.
    With two classes the correlation between classes is +1 or -1, without a gradient; with one
    region its term is left out.
    Options: `temperature` T, `beta`, `gamma`. `weight` 1 of beta = gamma = 1.
    """

    weight: ClassVar[float] = 1.0
    temperature: Positive = 1.0
    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0

    def logits(self, student: Volume, teacher: Volume, counts: Counts) -> Scalar:
        s, t = (self.probabilities(z / self.temperature).flatten(2) for z in (student, teacher))
        w = counts.flatten(1)[:, None].to(s.dtype)  # (b, 1, v)
        some = (w.amax(2) > 0).to(s.dtype)  # (b, 1): samples that have a voxel at all
        samples = (some.sum() * s.shape[1]).clamp(min=1)
        within = (some - some * _correlation(s, t, w, 2)).sum() / samples
        loss = self.gamma * within
        if s.shape[1] > 1:
            between = 1 - _correlation(s, t, torch.ones_like(s[:, :, :1]), 1)
            loss = loss + self.beta * (between * w[:, 0]).sum() / w.sum().clamp(min=1)
        return self.temperature**2 * loss


class WaveletOutputs(LogitMethod):
    """The student's probability maps have the teacher's edges; their coarse band stays free.

        sum_(l = 1..L) mean_(7 detail bands) |W_l (p_s - p_t)|,
        p = softmax(logits), or sigmoid for `regions`; W their Haar transform.

    Source: Zhang, Chen, Tu, Wan, Xu, Ma, CVPR 2022, arXiv 2203.06321.
    3D change: probabilities for images, seven detail bands for three, at most three levels. With
    the third axis a level l has 2^(l/2) times the coefficients of what is constant along it.
    Differs from the authors' code: zero padding there. Ignored voxels count as equal.
    Options: `wavelet`, `levels` at most. `weight` 10 is a start: the paper's was not recovered.
    """

    weight: ClassVar[float] = 10.0
    wavelet: Annotated[Wavelet, Check(lambda _, wavelet: axis_names(wavelet) and wavelet)] = "haar"
    levels: Count = 3

    def logits(self, student: Volume, teacher: Volume, counts: Counts) -> Scalar:
        levels = min(self.levels, max_level(student.shape[2:], self.wavelet))
        if not levels:
            got = f"grid {tuple(student.shape[2:])} with {self.wavelet}"
            raise ContractError("levels", got, "one at least", "a larger patch, or wavelet='haar'")
        # The transform is linear, so the difference is transformed, once.
        difference = self.probabilities(student) - self.probabilities(teacher)
        details = wavedec3(difference * counts[:, None], self.wavelet, levels=levels).details
        return torch.stack([d.abs().mean() for d in details]).sum()


class ChannelWiseLogits(LogitMethod):
    """Every class map of the student is bright where the teacher's is.

        T^2 * mean_(b,k) sum_v phi_t (log phi_t - log phi_s),    phi = softmax_v(logits / T).

    Source: Shu, Liu, Gao, Yan, Shen, ICCV 2021, arXiv 2011.13256.
    3D change: a few classes at a time.
    Differs from the authors' code: theirs adds adversarial and pixel-wise terms.
    Options: `temperature` T. `weight` 3 belongs to T = 4 and the mean over classes.
    """

    weight: ClassVar[float] = 3.0
    regions: bool | None = None
    temperature: Positive = 4.0

    def logits(self, student: Volume, teacher: Volume, counts: Counts) -> Scalar:
        divergence = partial(channelwise, self.temperature, None if counts.all() else counts)
        total = self.in_chunks(divergence, student, teacher, dim=1)
        return total / (student.shape[0] * student.shape[1])


def channelwise(
    temperature: float, counts: Counts | None, student: Volume, teacher: Volume
) -> Scalar:
    """T^2 times the divergence of the channels' distributions over voxels, summed over b and c."""
    p, q = (x / temperature for x in (student, teacher))
    if counts is not None:
        # Not -inf: the probability is 0 as well, but differences of its logarithms stay finite.
        p, q = (x.masked_fill(~counts[:, None], torch.finfo(x.dtype).min) for x in (p, q))
    p, q = (log_softmax(x.flatten(2), -1) for x in (p, q))
    return temperature**2 * (q.exp() * (q - p)).sum()


def _correlation(
    a: Float[Tensor, "b k v"], b: Float[Tensor, "b k v"], w: Float[Tensor, "b _ _"], dim: int
) -> Float[Tensor, "b _"]:
    """Pearson's correlation along `dim` with weights `w`, 0 where one of the two is constant."""
    total = w.expand_as(a).sum(dim, keepdim=True).clamp(min=1)
    a, b = ((x - (x * w).sum(dim, keepdim=True) / total) * w for x in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (norms + 1e-8)
