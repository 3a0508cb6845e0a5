"""Faces in photographs: where they are, and crops of them framed as training images are."""

from cfmrfn.faces.alignment import FRAMING, Crop, Framing, align, is_framing, measured_framing
from cfmrfn.faces.detector import DetectedFace, FaceDetector, check_options, why_no_detector

__all__ = [
    "FRAMING",
    "Crop",
    "DetectedFace",
    "FaceDetector",
    "Framing",
    "align",
    "check_options",
    "is_framing",
    "measured_framing",
    "why_no_detector",
]
