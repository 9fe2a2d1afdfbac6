"""Layouts of data sets: what a folder or file holds, and its annotations as COCO content."""
