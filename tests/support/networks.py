"""One small network of every kind that `models` builds: two channels in, three classes out."""

from __future__ import annotations

from dcd_core.models import dynunet, resenc


def builders(channels):
    """Makers by name, of networks with three stages of these `channels`."""
    return {
        "dynunet": lambda: dynunet(2, 3, channels=channels),
        "plain": lambda: dynunet(2, 3, channels=channels, residual=False),
        "resenc": lambda: resenc(2, 3, channels=channels, blocks=(1, 2, 1)),
        "deep": lambda: resenc(2, 3, channels=channels, blocks=(1, 1, 1), deep_supervision=True),
    }
