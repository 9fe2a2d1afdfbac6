"""The records of annotation files, cleaned: categories, images, boxes and polygons."""
