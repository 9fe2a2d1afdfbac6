"""The Optuna study as the ledger of a search: trials, rungs, samplers, the front."""
