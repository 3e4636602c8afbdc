"""What looks like the disease and is not: small-vessel gliosis, iron, vessels, pile-up.

None of it is labelled. A model that looks at brightness alone takes it for disease.
"""

from __future__ import annotations

import numpy as np

from dcd_lab.phantom.anatomy import Anatomy
from dcd_lab.phantom.fields import Array, Grid, Rng, blur, smooth, soft


def blob(mni: Array, centre: tuple[int, int, int], radii: tuple[float, float, float]) -> Array:
    """Gaussian bump at a pair of mirrored MNI positions (mm)."""
    position = zip((np.abs(mni[0]), mni[1], mni[2]), centre, radii, strict=True)
    x, y, z = ((value - c) / r for value, c, r in position)
    return np.exp(-(x**2 + y**2 + z**2))


def gliosis(rng: Rng, grid: Grid, anatomy: Anatomy, beta: tuple[float, float]) -> Array:
    """Share of white-matter hyperintensity: caps on the horns, a thin patchy band, deep spots.

    `beta`: the distribution of a patient's burden, 0 to 1.
    """
    burden = float(rng.beta(*beta))
    near = 2.0 * blur(anatomy.ventricle, 3.2, grid)
    y = anatomy.mni[1]
    horns = soft(np.maximum(y - 16.0, -34.0 - y), 16.0)
    band = near * (0.35 + 0.65 * horns) * (0.5 + 1.1 * burden) + 0.16 * smooth(rng, grid, 9.0)
    spots = soft(smooth(rng, grid, 6.0) - 3.3 + 1.1 * burden, 1.1)
    spots = spots * soft(anatomy.depth_mm - 8.0, 6.0)
    return anatomy.white * np.clip(soft(band - 0.5, 0.4) + spots, 0.0, 1.0)


def pallidum(rng: Rng, grid: Grid, anatomy: Anatomy) -> Array:
    """Share of iron-rich deep nuclei, dark on T2, FLAIR and DWI."""
    bump = blob(anatomy.mni, (19, -3, -1), (6.5, 10.0, 6.5))
    nigra = blob(anatomy.mni, (10, -19, -13), (5.0, 5.0, 4.0))
    level = np.maximum(bump, nigra) - 0.5 + 0.12 * smooth(rng, grid, 8.0)
    return 0.7 * (1.0 - anatomy.csf) * soft(level, 0.9)


def vessels(rng: Rng, grid: Grid, anatomy: Anatomy) -> Array:
    """Share of enhancing vessel, dura and choroid plexus per voxel."""
    one, two = smooth(rng, grid, 11.0), smooth(rng, grid, 11.0)
    tube = soft(0.8 - 7.0 * np.hypot(one, two), 1.0) * soft(24.0 - anatomy.depth_mm, 8.0)
    veins = tube * np.clip(2.0 * anatomy.csf + 0.1, 0.0, 1.0)
    shell = soft(1.3 - np.abs(anatomy.edge_mm - 1.2), 1.5)
    dura = shell * soft(smooth(rng, grid, 13.0) - 1.1, 0.8)
    plexus = blob(anatomy.mni, (22, -38, 8), (5.0, 8.0, 9.0))
    choroid = anatomy.ventricle * soft(plexus + 0.25 * smooth(rng, grid, 4.0) - 0.62, 0.5)
    return np.clip(0.75 * veins + 0.55 * dura + 0.6 * choroid, 0.0, 1.0)


def susceptibility(rng: Rng, grid: Grid, anatomy: Anatomy) -> Array:
    """Log signal change of echo-planar images above the sinuses and the ear bones."""
    frontal = blob(anatomy.mni, (14, 42, -18), (17.0, 20.0, 9.0))
    ear = blob(anatomy.mni, (50, -20, -26), (12.0, 24.0, 10.0))
    field = rng.uniform(0.2, 0.9) * frontal + rng.uniform(0.2, 0.9) * ear
    return field * (0.45 + 0.9 * smooth(rng, grid, 8.0))
