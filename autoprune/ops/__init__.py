"""Rules for torch's ops: which channels of their inputs and outputs belong together."""
