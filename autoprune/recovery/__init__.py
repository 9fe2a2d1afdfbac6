"""Full recovery of chosen policies, and what it says of the proxies."""
