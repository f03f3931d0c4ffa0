"""What the engines said of each image: kept in memory, or line by line in a journal that outlives the run."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.annotations import image_sha256
from eval.protocol import protocol_differences
from runtime.errors import BadInput
from runtime.files import whole_file
from runtime.keypoints import Poses

PATHS = {"engine", "annotations"}  # of the protocol: may change while the sha256 beside them is the same
ARRAYS = ("boxes", "box_scores", "keypoints")


@dataclass(frozen=True)
class ImagePoses:
    """One image, done.

    Attributes:
        image_id, category_id: of the annotations.
        poses: the Poses that are kept.
        scores: (N,) by which COCO ranks them.
        suppressed: poses that OKS-NMS took.
        found: annotated persons that the boxes found (`eval.scoring.count_found`); 0 with ground-truth boxes.
        detect_seconds, pose_seconds: time in the detector and in the pose estimator.
        image_sha256: of the image's file, hexadecimal digits.
    """

    image_id: int | str
    category_id: int
    poses: Poses
    scores: np.ndarray
    suppressed: int = 0
    found: int = 0
    detect_seconds: float = 0.0
    pose_seconds: float = 0.0
    image_sha256: str = ""

    @property
    def results(self):
        """Its poses in COCO's results format, a list of dicts; positions to a hundredth of a pixel."""
        keypoints = self.poses.keypoints.astype(np.float64)
        keypoints[..., :2] = keypoints[..., :2].round(2)
        keypoints[..., 2] = keypoints[..., 2].round(4)
        of_image = {"image_id": self.image_id, "category_id": self.category_id}
        return [{**of_image, "keypoints": person.ravel().tolist(), "score": float(score)}
                for person, score in zip(keypoints, self.scores, strict=True)]


@dataclass
class Predictions:
    """What the engines said, so far.

    Attributes:
        kept: the `ImagePoses`, in the order of the images: a list, some 300 bytes a pose and 1 KB an image; or a
            `Journal`, with which memory does not grow.
        images: images that went through.
        persons: boxes that got a pose, but for those that OKS-NMS took again.
        suppressed, found, detect_seconds, pose_seconds: sums over the images, as in `ImagePoses`.
        digest: SHA-256 of the images' own, see `images_sha256`.
    """

    kept: Any = field(default_factory=list)
    images: int = 0
    persons: int = 0
    suppressed: int = 0
    found: int = 0
    detect_seconds: float = 0.0
    pose_seconds: float = 0.0
    digest: Any = field(default_factory=hashlib.sha256, repr=False, compare=False)

    def __post_init__(self):
        for image in self.kept:
            self._count(image)

    def add(self, image):
        self.kept.append(image)
        self._count(image)

    def _count(self, image):
        self.images += 1
        self.persons += len(image.poses)
        self.suppressed += image.suppressed
        self.found += image.found
        self.detect_seconds += image.detect_seconds
        self.pose_seconds += image.pose_seconds
        self.digest.update(image.image_sha256.encode())

    @property
    def images_sha256(self):
        """One hash of the contents of all images that went through, in their order: SHA-256 of their SHA-256."""
        return self.digest.hexdigest()

    def each_result(self):
        """Iterate over the poses of all images in COCO's results format, of which only one image's are in memory."""
        for image in self.kept:
            yield from image.results

    @property
    def results(self):
        """The same as a list, some 2 KB a pose."""
        return list(self.each_result())

    def poses_of(self, image_ids=None):
        """Image id → its Poses, in the order of their results; of some images, or of all."""
        return {image.image_id: image.poses for image in self.kept if image_ids is None or image.image_id in image_ids}


class Journal:
    """A file of images that are done: a line of JSON for the run, then one an image, in the order of the images.

    Arrays are [type, shape, base64 of their bytes], so that they come back bit for bit. A line that lacks its end, of
    a run that was killed in the middle of it, does not count. Iterate over it for the `ImagePoses`.

    Args:
        path: of the file.
        stamp: dict for JSON, what the numbers hang on.
        resume: go on with the file that is there; else it is replaced.

    Raises:
        BadInput: the file is of a run with another stamp, is damaged, or cannot be written.
    """

    def __init__(self, path, stamp, resume=False):
        self.path = path
        try:
            stored, images, end = _survey(path) if path.exists() else (None, 0, 0)
            if resume and stored is not None:
                _refuse_other(path, stored, stamp)
            elif resume:
                print(f"nothing to continue in {path.parent}: starting from the beginning")
            elif images:
                print(f"replacing {path} of a run that stopped after {images} images; --continue would have gone on")
            self._end = end if resume else 0
            with open(path, "ab") as file:
                file.truncate(self._end)
        except OSError as error:
            raise _cannot_write(path, error) from error
        if not self._end:
            self._write(stamp)

    def append(self, image):
        arrays = {name: _packed(getattr(image.poses, name)) for name in ARRAYS} | {"scores": _packed(image.scores)}
        self._write({**{name: value for name, value in vars(image).items() if name != "poses"}, **arrays})

    def _write(self, content):
        line, landed = memoryview((json.dumps(content) + "\n").encode()), 0
        with open(self.path, "ab", buffering=0) as file:
            try:
                while landed < len(line):
                    landed += file.write(line[landed:])
            except OSError as error:
                file.truncate(self._end)
                raise _cannot_write(self.path, error) from error
        self._end += len(line)

    def __iter__(self):
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if number and line.endswith(b"\n"):
                    yield self._image(number + 1, line)

    def _image(self, number, line):
        try:
            fields = json.loads(line)
            poses = Poses(**{name: _unpacked(*fields.pop(name)) for name in ARRAYS})
            return ImagePoses(**{**fields, "scores": _unpacked(*fields["scores"])}, poses=poses)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{self.path}: line {number} is damaged ({error}); start afresh, without --continue"
                           ) from error

    def remove(self):
        """Delete the file, once all that follows from it is written."""
        self.path.unlink()


def _survey(path):
    """The stamp in a journal (None where there is no whole line), its images, and where its last whole line ends."""
    lines, end, first = 0, 0, b""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                first, lines, end = first or line, lines + 1, end + len(line)
    if not lines:
        return None, 0, 0
    try:
        stamp = json.loads(first)
    except ValueError:
        stamp = None
    if not isinstance(stamp, dict):
        raise BadInput(f"{path} is no journal of an evaluation; remove it or choose another --out")
    return stamp, lines - 1, end


def _refuse_other(path, stored, stamp):
    """Raise BadInput, naming what differs, unless a journal's run would have given the same numbers."""
    different = protocol_differences(stored, json.loads(json.dumps(stamp)), free=PATHS)
    if different:
        raise BadInput(f"{path} is of a run that measured something else ({'; '.join(different)}): --continue needs "
                       "the same options and files; leave it out to start afresh")


def check_same_images(kept, images, folder):
    """Raise BadInput unless what is kept is of the first of these images, and their files hold what they held."""
    for done, image in zip(kept, images, strict=False):
        now = image_sha256(image, folder)
        if (done.image_id, done.image_sha256) != (image["id"], now):
            raise BadInput(f"{image['file_name']} in {folder} is not the picture that was evaluated (SHA-256 "
                           f"{done.image_sha256[:12]}… then, {now[:12]}… now): --continue needs the same images; leave "
                           "it out to start afresh")


def finished_run(out, stamp, images, folder):
    """The protocol of a run in `out` that is finished and is the one asked for; None where there is none.

    Args:
        out: folder of the results.
        stamp: as for `Journal`.
        images: those that the run is to read, dicts of the annotations. folder: where they lie.

    Raises:
        BadInput: a finished run lies there that measured something else, or its files are not readable.
    """
    path = out / "metrics.json"
    if (out / "journal.jsonl").exists() or not path.exists() or not (out / "keypoints.json").exists():
        return None
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))["protocol"]
        stored = flat_protocol(protocol)
        contents = protocol.get("images_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is no metrics.json of an evaluation; remove it or choose another --out") from error
    _refuse_other(path, {key: stored[key] for key in stamp if key in stored}, stamp)
    digest = hashlib.sha256("".join(image_sha256(image, folder) for image in images).encode()).hexdigest()
    _refuse_other(path, {"images_sha256": contents}, {"images_sha256": digest})
    return protocol


def flat_protocol(protocol):
    """A protocol with an entry for each version, so that what differs is named alone."""
    versions = {f"version of {name}": number for name, number in protocol["versions"].items()}
    return {**{key: value for key, value in protocol.items() if key != "versions"}, **versions}


def _packed(array):
    array = np.ascontiguousarray(array)
    return [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]


def _unpacked(kind, shape, data):
    return np.frombuffer(base64.b64decode(data), kind).reshape(shape)


def _cannot_write(path, error):
    return BadInput(f"cannot write {path}: {error.strerror}; what is in it is kept: make room, then --continue, or "
                    "choose another --out")


def json_parts(items):
    """The text of `json.dumps(list(items))`, in parts of one item."""
    before = "["
    for item in items:
        yield before + json.dumps(item)
        before = ", "
    yield "[]" if before == "[" else "]"


def write_results(path, predictions):
    """Write keypoints.json, all poses in COCO's results format, whole or not at all."""
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json_parts(predictions.each_result()))
        file.write("\n")
