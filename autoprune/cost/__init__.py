"""Cost models: GFLOPs and parameters of any widths, and budgets on them."""
