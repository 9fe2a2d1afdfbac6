"""The search: space, warm starts, samplers, rungs, the ledger, the front."""
