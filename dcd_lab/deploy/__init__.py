"""Deployment: a segmenter as a file that ships, what it costs, and whether its logits are the same.

A trained segmenter is written as ONNX, quantised to 8-bit integers, and read back as a `Segmenter`,
which prediction and metrics take. `simulate_int8` shows the effect on accuracy on any machine.
"""

from dcd_lab.deploy.cost import Cost, cost, latency_ms, macs, peak_mib
from dcd_lab.deploy.export import check_export, export_onnx, graph_hash, load
from dcd_lab.deploy.int8 import quantize, simulate_int8

__all__ = ["Cost", "check_export", "cost", "export_onnx", "graph_hash", "latency_ms", "load"]
__all__ += ["macs", "peak_mib", "quantize", "simulate_int8"]
