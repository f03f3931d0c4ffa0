"""Rendered people with exact keypoints: a rehearsal clip for machines without camera or data, and training pictures.

    python -m runtime.walkers --out walkers.mp4 --truth walkers.json          a clip and its truth
    python -m runtime.walkers --stills 500 --out pictures --truth truth.json  a folder of pictures and theirs

A person is a skinned mesh (`body`, `clothes`) in a pose (`motion`), set into a scene (`scene`, `compose`), drawn with
its truth (`render`) and written in COCO's format (`dataset`).
"""

from runtime.walkers.compose import render_clip, render_still
from runtime.walkers.dataset import write_clip, write_stills

__all__ = ["render_clip", "render_still", "write_clip", "write_stills"]
