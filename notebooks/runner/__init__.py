"""Runs notebooks. The command line is `notebooks/run.py`."""
