"""Faces and their expressions in videos and before cameras, frame by frame::

    predictor = cfmrfn.Predictor("best.pt")
    for frame in cfmrfn.video.read("clip.mp4", predictor):
        print(frame.number, frame.seconds, [(face.track, face.expression) for face in frame.faces])

OpenCV decodes and encodes. One thread reads the frames that come next, another finds the faces in
them, and the network runs in the caller's.
"""

from cfmrfn.video.containers import VIDEO_SUFFIXES, camera, is_video
from cfmrfn.video.files import Video, VideoPicture, VideoWriter, opencv
from cfmrfn.video.frames import Frame, read
from cfmrfn.video.tracking import FORGOTTEN_AFTER, SEARCH_EVERY, Tracker

__all__ = [
    "FORGOTTEN_AFTER",
    "SEARCH_EVERY",
    "VIDEO_SUFFIXES",
    "Frame",
    "Tracker",
    "Video",
    "VideoPicture",
    "VideoWriter",
    "camera",
    "is_video",
    "opencv",
    "read",
]
