"""Code of the bundle that its configurations name."""
