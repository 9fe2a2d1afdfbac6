"""Criteria: rules that score every channel of every group."""
