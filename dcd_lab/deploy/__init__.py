"""Deployment: what ships, what it costs, and whether it still says the same.

A trained segmenter is written as ONNX, quantised to 8-bit integers after training, and read back as
a `Segmenter`, so that prediction and metrics take it like any other. `cost` counts and times a
network, `check_export` refuses an export that says something else, and `simulate_int8` shows what
8 bits do to accuracy on any machine, without an integer arithmetic unit or any package for one.
"""

from dcd_lab.deploy.cost import Cost, cost, latency_ms, macs, peak_mib
from dcd_lab.deploy.export import check_export, export_onnx, load
from dcd_lab.deploy.int8 import quantize
from dcd_lab.deploy.simulated import simulate_int8

__all__ = [
    "Cost",
    "check_export",
    "cost",
    "export_onnx",
    "latency_ms",
    "load",
    "macs",
    "peak_mib",
    "quantize",
    "simulate_int8",
]
