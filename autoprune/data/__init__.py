"""Detection data in COCO format: reading, the generated sample set, and COCOeval."""
