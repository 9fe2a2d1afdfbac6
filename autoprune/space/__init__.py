"""The search space: its YAML file, widths, and the policies that one-shot methods end with."""
