"""Films of drawn faces that move, and the tracks that follow them."""

import cv2
import numpy as np

from cfmrfn.data.synthetic import draw_face

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SIZE = 640, 480
RATE = 25.0
MPEG4, MOTION_JPEG, LOSSLESS = "mp4v", "MJPG", "FFV1"


def background(size, seed=0):
    """(height, width, 3), smooth."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 190, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def film(path, frames, *, code=MPEG4, rate=RATE, color=True):
    """Writes frames (height, width, 3), BGR."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), rate, size, color
    )
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame if color else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    writer.release()
    return path


def scene(moves, *, seed=0, side=150):
    """Frames, and the boxes of the faces in each; `moves`: of each face (frames, 2), its corner."""
    drawn = [draw_face("happiness", side, (3, seed, number)) for number in range(len(moves))]
    ground = background(SIZE, seed)
    frames, boxes = [], []
    for corners in zip(*moves, strict=True):
        frame = ground.copy()
        of_frame = []
        for (x, y), face in zip(corners, drawn, strict=True):
            frame[y : y + side, x : x + side] = np.asarray(face.image)[..., ::-1]
            landmarks = face.landmarks + np.array([x, y])
            of_frame.append((*landmarks.min(0), *landmarks.max(0)))
        frames.append(frame)
        boxes.append(of_frame)
    return frames, boxes


def path_of(start, end, frames):
    return np.linspace(start, end, frames).round().astype(int)


def overlap(one, other):
    """Intersection over union."""
    one, other = np.array(one), np.array(other)
    common = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0).prod()
    return common / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def tracks_of(frames, boxes):
    """For each face of the scene the track in each frame, None where it was not found."""
    return [
        [
            next((face.track for face in frame.faces if overlap(face.box, now[place]) > 0.4), None)
            for frame, now in zip(frames, boxes, strict=True)
        ]
        for place in range(len(boxes[0]))
    ]
