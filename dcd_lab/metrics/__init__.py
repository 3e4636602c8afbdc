"""Scores of one case: how well a predicted mask overlaps the true one, and how far apart they lie.

Dice measures shared volume and changes little where lesions are large. The surface scores (HD95,
NSD) measure millimetres and Dice along the border; both are strict where boundaries matter. The
lesion scores look at one connected lesion at a time, because a stroke of 0.1 ml disappears inside
the Dice of a lesion of 80 ml. `score` has all of them; `brats2024` and `isles2022` are what the two
challenges rank by, `challenge` the one of a task.

Conventions, once for the whole module:

- A mask is (i, j, k), boolean or integer with values 0 and 1; spacing is millimetres per axis.
  Anything else raises ContractError.
- A surface is the set of *border voxels*: foreground voxels with a background voxel among their
  six face neighbours; beyond the volume everything is background. Distances run between voxel
  centres, unweighted: every border voxel counts once.
- Empty masks: both empty is a perfect answer (Dice 1, HD95 0 mm, NSD 1); one empty is the worst
  one (Dice 0, NSD 0, HD95 `empty_mm`, by default the diagonal of the volume). Scores over lesions
  are NaN when the truth has no such lesion. The challenges have rules of their own.
"""

from dcd_lab.metrics.brats import brats2024
from dcd_lab.metrics.case import challenge, isles2022, score
from dcd_lab.metrics.lesion import dice_by_volume, lesions, small_lesion_dice
from dcd_lab.metrics.region import boundary_dice, dice, hd95, nsd, surfaces, volume_ml

__all__ = [
    "boundary_dice",
    "brats2024",
    "challenge",
    "dice",
    "dice_by_volume",
    "hd95",
    "isles2022",
    "lesions",
    "nsd",
    "score",
    "small_lesion_dice",
    "surfaces",
    "volume_ml",
]
