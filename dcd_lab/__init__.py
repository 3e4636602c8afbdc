"""The experiment around Detail Consistent Distillation: data, phantoms, scores, studies, plots.

`dcd_core` is the method and never imports this package.
"""
