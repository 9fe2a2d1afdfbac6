"""One training loop for baselines, proxies and recovery."""
