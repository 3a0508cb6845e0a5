"""Drawn faces: parametric faces with known expressions and landmarks, made without any download."""

from cfmrfn.data.synthetic.writer import DrawnFace, contact_sheet, draw_face, write_faces

__all__ = ["DrawnFace", "contact_sheet", "draw_face", "write_faces"]
