"""What is pruned, and what a trial does with it."""
