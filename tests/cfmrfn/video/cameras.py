"""A camera that no machine needs to have."""

import time

import cv2


class Camera:
    """Stands for OpenCV's capture of a camera, of 50 frames per second."""

    def __init__(self, frames, on_read=lambda number: None):
        self.frames = frames
        self.on_read = on_read
        self.number = 0
        self.released = False

    def __call__(self, source, *_):
        assert isinstance(source, int)
        return self

    def isOpened(self):
        return True

    def get(self, what):
        return {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480}.get(what, 0)

    def read(self):
        time.sleep(0.02)
        if self.number == len(self.frames):
            return False, None
        self.on_read(self.number)
        self.number += 1
        return True, self.frames[self.number - 1]

    def release(self):
        self.released = True
