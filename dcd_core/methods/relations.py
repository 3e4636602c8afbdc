"""How places relate: the student keeps similarities, distances and angles, not the features.

Voxels are too many for that: they are pooled to *nodes*, the means of a coarse grid of regions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax, smooth_l1_loss

from dcd_core.errors import Count, Positive, not_negative
from dcd_core.method import SMALL, Narrow, Scalar, UnadaptedMethod, averaged, directions
from dcd_core.types import Volume

Nodes = Float[Tensor, "b n _"]


class RelationMethod(UnadaptedMethod):
    """A loss of the relations among nodes (b, n, c); `nodes`: how many along each axis, at most."""

    nodes: Count = 4

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        s, t = (averaged(x, self.nodes).flatten(2).mT for x in (student, teacher))
        return self.relations(s, t)

    def relations(self, student: Nodes, teacher: Nodes) -> Scalar:
        """The loss of one stage."""
        raise NotImplementedError


class PairwiseAffinity(RelationMethod):
    """Two regions are as similar for the student as they are for the teacher.

        mean_stages mean_(b,i,j) (cos_ij(s) - cos_ij(t))^2,    cos_ij that of nodes i and j.

    Source: Liu, Chen, Liu, Qin, Luo, Wang, CVPR 2019, arXiv 1903.04197, and TPAMI 2020.
    3D change: at most 8^3 nodes for the paper's patches of 2 x 2, which would need 4 GiB.
    Differs from the authors' code: there a patch is half of the map, so that 2 x 2 nodes are left
    (`nodes=2`), pooled by the maximum; norms have no gradient; the weight is 1, or 0.5 in the
    script. Here all is as in the paper's text, without its pixel-wise and adversarial terms.
    Options: `nodes` per axis. `weight` 10 belongs to the mean over pairs.
    """

    weight: ClassVar[float] = 10.0
    nodes = 8

    def relations(self, student: Nodes, teacher: Nodes) -> Scalar:
        s, t = (directions(nodes, 2) for nodes in (student, teacher))
        return (s @ s.mT - t @ t.mT).square().mean()


class RelationalKD(RelationMethod):
    """Regions lie as far from each other, and at the angles, that the teacher sees.

        mean_stages [distance * mean_ij h(d_ij(s) - d_ij(t))
                     + angle * mean_(i,j,k) h(<u_ij, u_kj>(s) - <u_ij, u_kj>(t))],
        d_ij = |x_i - x_j| / mean_(i != j) |x_i - x_j| of the nodes x of the whole batch,
        u_ij the unit vector from x_j to x_i, h the Huber loss with threshold 1.

    Source: Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068.
    3D change: nodes are the regions of all patches together, not the dozens of images of a batch.
    Differs from the authors' code: theirs divides distances by the mean of those above 0, and has
    the terms' weights 1 and 2 where those of RepDistiller are 25 and 50.
    Options: `nodes` per axis (triples of 4^3 in b patches are (64 b)^3 numbers), `distance` and
    `angle`, the weights of the two terms. `weight` 1 belongs to 25 and 50.
    """

    weight: ClassVar[float] = 1.0

    def __init__(
        self, *channels: Sequence[int], distance: float = 25.0, angle: float = 50.0, **shared: Any
    ) -> None:
        super().__init__(*channels, **shared)
        self.distance_weight = not_negative("distance", distance)
        self.angle_weight = not_negative("angle", angle)

    def relations(self, student: Nodes, teacher: Nodes) -> Scalar:
        s, t = student.flatten(0, 1), teacher.flatten(0, 1)
        far = smooth_l1_loss(_distances(s), _distances(t))
        turned = smooth_l1_loss(_angles(s), _angles(t))
        return self.distance_weight * far + self.angle_weight * turned


class CrossImage(RelationMethod):
    """A region resembles the regions of every patch of the batch as it does for the teacher.

        mean_stages mean_(b,c,i) sum_j p_t(j) (log p_t(j) - log p_s(j)),
        p(j) = softmax_j <u(b, i), u(c, j)> / T of unit nodes u, for all patches b and c.

    Source: Yang, Zhou, An, Jiang, Xu, Zhang, CVPR 2022, arXiv 2204.06986.
    3D change: regions stand for pixels. A single patch is related to itself.
    Differs from the authors' code (CIRKD): the mini-batch term alone, without their memory bank.
    Options: `temperature` T, `nodes` per axis. `weight` 1 belongs to T = 0.1; 0.1 was the bank's.
    """

    weight: ClassVar[float] = 1.0
    temperature: Positive = 0.1

    def relations(self, student: Nodes, teacher: Nodes) -> Scalar:
        units = (directions(nodes, 2) for nodes in (student, teacher))
        cosines = (torch.einsum("bic,djc->bdij", u, u) for u in units)
        p, q = (log_softmax(x / self.temperature, -1) for x in cosines)
        return (q.exp() * (q - p)).sum(-1).mean()


def _distances(nodes: Float[Tensor, "n c"]) -> Float[Tensor, "n n"]:
    d = torch.linalg.vector_norm(nodes[:, None] - nodes, dim=2)
    pairs = max(1, len(d) * (len(d) - 1))
    return d / (d.sum() / pairs).clamp(min=SMALL)


def _angles(nodes: Float[Tensor, "n c"]) -> Float[Tensor, "n n n"]:
    u = directions(nodes - nodes[:, None], 2)  # from the vertex, the first axis
    return u @ u.mT
