"""Detection data in COCO, YOLO or Pascal VOC layout: reading, the generated sample set, and COCOeval."""
