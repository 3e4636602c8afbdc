"""Distillation inside stock nnU-Net: a trainer that `nnUNetv2_train -tr DCDTrainer` finds.

`settings` says how a student is distilled, `plans` writes the plans of the student and holds the
teacher to them, `trainer` is the trainer. Only the trainer imports nnU-Net. nnU-Net searches the
folder `discovered`, which `python -m dcd_core.nnunet` prints, once it is in nnUNet_extTrainer.
"""
