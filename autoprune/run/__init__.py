"""The run directory: everything one search wrote."""
