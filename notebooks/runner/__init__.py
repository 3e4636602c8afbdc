"""Runs notebooks: finds them, gives them parameters, skips what is done, keeps what they say.

`notebooks/run.py` is the command line of this package.
"""
