"""Detectors of other libraries in torchvision's convention: one module a library, imported when it is named.

A detector is named ``LIBRARY:SOURCE``, such as ``ultralytics:yolo11n.yaml``; the source is a file, a folder
or a name that the library knows.
"""

from autoprune.vendors.dense import DenseRule
from autoprune.vendors.detector import PREFIX, VendorDetector
from autoprune.vendors.table import Description, Library, Vendor, described, libraries, vendor_of
from autoprune.vendors.transform import DetectorTransform

__all__ = [
    "PREFIX",
    "DenseRule",
    "Description",
    "DetectorTransform",
    "Library",
    "Vendor",
    "VendorDetector",
    "described",
    "libraries",
    "vendor_of",
]
