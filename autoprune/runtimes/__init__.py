"""Detectors for other runtimes: dense heads of a fixed size, ONNX, and the detections read off them."""
