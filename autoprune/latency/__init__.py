"""Latency: measured, and predicted from the layers."""
