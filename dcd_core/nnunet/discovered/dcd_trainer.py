"""The module that nnU-Net imports by itself; it drops all modules of this folder afterwards."""

from dcd_core.nnunet.trainer import DCDTrainer

__all__ = ["DCDTrainer"]
