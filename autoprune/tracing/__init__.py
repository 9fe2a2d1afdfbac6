"""One forward pass under the rules: constraints between channels, layers, and where the signal flows."""
