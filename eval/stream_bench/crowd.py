"""How the pipeline's latency grows with the number of persons: rendered people side by side, 1 to 16 a frame."""

import numpy as np

from eval.stream_bench.contestants import Camera, Contestant, Turn, pipeline, take_turn
from runtime.files import whole_file
from runtime.walkers import render_clip

PERSONS = (1, 2, 4, 8, 16)
TILE = 160, 240  # pixels, width and height: one person's
COLUMNS, ROWS = 8, 2
TILE_FRAMES = 6  # of each person, in which it moves
LEAST_SIDE = 0.15, 0.45  # of a tile's width and height: whoever looks smaller is half outside
EMPTY_GREY = 114
FPS = 25


def render_tiles(count):
    """People to fill frames with.

    Returns:
        list of `count` persons; each a list of pictures (240, 160, 3) uint8 BGR and boxes (4,) float32, left, top,
        right, bottom in the picture's pixels.
    """
    people: list[list] = []
    seed = 0
    while len(people) < count:
        seen = []
        for picture, annotations in render_clip(TILE_FRAMES, TILE, seed, 1):
            if annotations:
                left, top, width, height = annotations[0]["bbox"]
                if width >= LEAST_SIDE[0] * TILE[0] and height >= LEAST_SIDE[1] * TILE[1]:
                    seen.append((picture, np.array([left, top, left + width, top + height], np.float32)))
        people += [seen] if seen else []
        seed += 1
    return people


def crowd(people, persons, frames):
    """Frames of so many persons in the tiles of a grid, the others grey.

    Returns:
        list of (480, 1280, 3) uint8 BGR images, and of boxes (persons, 4) float32, one a frame.
    """
    width, height = TILE
    images, boxes = [], []
    for index in range(frames):
        image = np.full((ROWS * height, COLUMNS * width, 3), EMPTY_GREY, np.uint8)
        places = []
        for person, tiles in enumerate(people[:persons]):
            picture, box = tiles[index % len(tiles)]
            left, top = person % COLUMNS * width, person // COLUMNS * height
            image[top:top + height, left:left + width] = picture
            places.append(box + np.array([left, top, left, top], np.float32))
        images.append(image)
        boxes.append(np.stack(places))
    return images, boxes


class Crowds:
    """The frames of each number of persons, and the turns that the pipeline took with them.

    The detector runs on each frame and its time counts, but the boxes that go on are the rendered truth's: else the
    number of persons would be how many it happens to find.

    Args:
        detector, pose: of the pipeline. frames: of one turn, at 25 a second. persons: the numbers.

    Attributes:
        turns: {number of persons: [Turn, …]}.
    """

    def __init__(self, detector, pose, frames, persons=PERSONS):
        people = render_tiles(max(persons))
        self._crowds = {number: crowd(people, number, frames) for number in persons}
        self.turns: dict[int, list[Turn]] = {number: [] for number in persons}
        self._detector, self._pose = detector, pose

    def take_turns(self):
        """One turn of each number of persons, from few to many, and the next time from many to few."""
        order = list(self._crowds)
        for number in order if len(self.turns[order[0]]) % 2 == 0 else order[::-1]:
            images, boxes = self._crowds[number]
            truth = {id(image): persons for image, persons in zip(images, boxes, strict=True)}

            def detect(image, truth=truth):
                self._detector(image)
                persons = truth[id(image)]
                return persons, np.ones(len(persons), np.float32)

            contestant = Contestant(f"{number} persons", pipeline(detect, self._pose))
            self.turns[number].append(take_turn(contestant, Camera(images, FPS)))


def draw_curve(figure, path, rows, caption):
    """Age over the number of persons.

    rows: dicts with persons, p50_ms and p99_ms, as in the report. caption: on what machine.
    """
    figure.set_size_inches(7, 4.2)
    axes = figure.add_subplot()
    persons = [row["persons"] for row in rows]
    for key, label, colour in (("p99_ms", "99 of 100 frames", "#d9822b"), ("p50_ms", "half of the frames", "#1f6fb2")):
        values = [row[key] for row in rows]
        axes.plot(persons, values, marker="o", color=colour, label=label)
        for place, value in zip(persons, values, strict=True):
            axes.annotate(f"{value:.0f}", (place, value), textcoords="offset points", color=colour, fontsize=9,
                          xytext=(0, 8) if key == "p99_ms" else (0, -15), ha="center")
    axes.axhline(1000 / FPS, color="0.6", linestyle="--", linewidth=1)
    axes.annotate(f"time between two frames at {FPS} FPS", (persons[-1], 1000 / FPS), ha="right", color="0.4",
                  fontsize=9, textcoords="offset points", xytext=(0, 4))
    axes.set(xlabel="persons in the frame", ylabel="age of the result, milliseconds", xticks=persons,
             ylim=(0, 1.15 * max(row["p99_ms"] for row in rows)))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(caption, fontsize=9, color="0.4", loc="left")
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120, facecolor="white")
