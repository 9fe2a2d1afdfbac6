"""Image files: which file a record means, its pixels upright and in 8 bits."""
