"""Cost models: GFLOPs and parameters of any widths, budgets, measured latency."""
