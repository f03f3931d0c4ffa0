"""Takes the pictures of the page in docs/: the page itself, of rendered people, by the bundled engines.

    python -m tests.take_screenshots    # → docs/serve-light.png and docs/serve-phone-dark.png; needs Chromium

Clips stand for three cameras, one of which is lost in the end. So that ten minutes need not be waited for, the page's
clock runs ahead through the history, two frames a second; the last seconds are real.
"""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.detect import PersonDetector
from runtime.draw import draw_poses
from runtime.engine import open_engine
from runtime.frames import Frame, open_video
from runtime.keypoints import Poses
from runtime.pipeline import Result, stream
from runtime.pose import PoseEstimator
from runtime.serve import WebPage
from runtime.track import Event, Tracker
from runtime.walkers import write_clip
from tests.browser import open_page, start_browser

ROOT = Path(__file__).resolve().parents[1]
CAMERAS = {"front door": [(1, 3), (2, 2)], "yard": [(2, 5), (4, 4)], "car park": [(3, 7), (1, 1)]}  # (persons, seed)
FRAMES = 75  # of each clip
STEP = 0.5  # seconds between two frames of the history
LOST = Result(None, Poses(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 17, 3))), {}, source=2, state="lost",
              reason="no answer within 10 s, trying again")


class Clock:
    """time.monotonic, and what was skipped."""

    def __init__(self):
        self.skipped = 0.0

    def __call__(self):
        return time.monotonic() + self.skipped


def results_of(folder, persons, seed, detector, pose):
    """The results of a clip with their drawn pictures."""
    path = folder / f"{seed}.mp4"
    write_clip(path, folder / f"{seed}.json", FRAMES, (640, 480), seed, persons)
    source = open_video(path)
    results = [(result, draw_poses(result.frame.image, result.poses, pose.schema, ids=result.ids))
               for result in stream(source, detector, pose, Tracker(pose.schema.sigmas))]
    source.close()
    return results


def write_turn(page, source, clips, index):
    """Frame number `index` of a camera that shows its clips again and again, its persons numbered on."""
    round, place = divmod(index, FRAMES)
    result, drawn = clips[round * (round + source) % 3 % 2][place]
    events = [Event(event.kind, event.id + 4 * round) for event in result.events]
    frame = Frame(index, index / 25, result.frame.image, "")
    page.write(Result(frame, result.poses, result.timings, result.ids, events, source=source), drawn)


def main():
    detector = PersonDetector(open_engine(ROOT / "models/person.onnx", "person"))
    pose = PoseEstimator(open_engine(ROOT / "models/pose.onnx", "pose"))
    with tempfile.TemporaryDirectory() as folder:
        cameras = [[results_of(Path(folder), *clip, detector, pose) for clip in clips] for clips in CAMERAS.values()]
    clock = Clock()
    page = WebPage("0", list(CAMERAS), clock=clock)
    with start_browser() as browser:
        tabs = [open_page(browser, page.url, 1280, 860, "light"), open_page(browser, page.url, 390, 844, "dark")]
        index, began = 0, None
        while began is None or time.monotonic() - began < 7:
            lost = began is not None and time.monotonic() - began > 4
            for source, clips in enumerate(cameras):
                if source != LOST.source or not lost:
                    write_turn(page, source, clips, index)
            if lost:
                page.write(LOST)
            index += 1
            if index * STEP < 640:
                clock.skipped += STEP
            else:
                began = began or time.monotonic()
                tabs[0].wait_for_timeout(40)
        for tab, name in zip(tabs, ("light", "phone-dark"), strict=True):
            path = ROOT / "docs" / f"serve-{name}.png"
            picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            picture.quantize(256, kmeans=3).save(path, optimize=True)  # without k-means the few green and red dots fade
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} kB")
    page.close()


if __name__ == "__main__":
    main()
