"""What would spoil a training, found before it starts: `python -m train --check --config CONFIG`.

A line for each check: "ok" and figures; "note" for what is worth a look; "wrong" for what should be put right first.
What healthy data have a little of, such as a box beside its person, is wrong only above some share of the persons.

Left and right. A pair of keypoints is seen in the person's own frame, up from hips to shoulders, so that lying people
count too: "facing" where its left one lies as that of somebody who faces the camera does, on the picture's right.

- The pairs of a person agree, whichever way it faces. With the majority of the others agree shoulders, elbows and hips
  on 97 to 100 % of the persons, eyes, ears and wrists on 93 to 99 %, knees on 92 to 96 %, ankles on 85 to 93 %, be they
  labelled by COCO, MPII or a teacher network, or rendered. A pair whose names are exchanged has 100 % minus that. AGREE
  lies between.
- Persons whose nose and eyes are visible (2, not 1) are facing: 98 % in COCO and of rendered ones, 80 % with labels of
  a teacher that guesses hidden faces too. All left and right exchanged leave 2 % and 20 %. FACING lies between.
- Keypoints without eyes (MPII, PoseTrack) leave everybody. In photographs more persons face the camera than not: 67 to
  72 % in COCO, 68 % in MPII, exchanged 28 to 33 %; but 50 % of pedestrians. ANYBODY_FACING is lower for that.
"""

import collections
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.errors import BadInput
from runtime.keypoints import SCHEMAS
from runtime.nms import box_iou
from train.augment import draw_crop
from train.check_batch import check_batch
from train.datasets import Photo, person_of, read_annotations, read_stored
from train.loader import MAX_BOXES

DECODED = 200  # images of an entry of `data`, spread evenly
AGREE, FACING, ANYBODY_FACING = 0.6, 0.5, 0.4  # shares below which left and right are wrong, see above
JUDGED = 30  # persons at least, for such a share to mean something
APART = 0.15  # of the torso's length: how far apart a pair must be to be judged; for eyes and ears a third of it
FLIPPED = 300  # persons whose mirrored crops are looked at
SMALL = 12.0  # root of the area in pixels of the detector's input, below which it hardly finds anybody


@dataclass
class Labels:
    """The annotations of an entry of `data`, N of them with K keypoints.

    Attributes:
        images: where all images of the entry are, as `train.datasets.read_annotations` has them.
        items: N annotations, dicts of COCO.
        image: (N,) index into `images`.
        sizes: (N, 2) width and height of their images, NaN where the annotations do not say.
        boxes: (N, 4) left, top, right, bottom.
        keypoints: (N, K, 3) x, y, visibility.
        crowd: (N,) whether it is a region to ignore.
    """

    images: list
    items: list
    image: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    crowd: np.ndarray

    def __len__(self):
        return len(self.items)

    def __getitem__(self, mask):
        """The rows of a mask (N,)."""
        columns = (getattr(self, name)[mask] for name in ("image", "sizes", "boxes", "keypoints", "crowd"))
        return Labels(self.images, [self.items[row] for row in np.flatnonzero(mask)], *columns)

    @property
    def labelled(self):
        """(N, K) which keypoints have a label."""
        return self.keypoints[..., 2] > 0

    def find(self, mask, what, remedy, tolerated=0.001):
        """Findings where a mask (N,) is set: how many, the first; wrong if they are more than the share tolerated."""
        count = int(np.sum(mask))
        if not count:
            return []
        first = int(np.argmax(mask))
        place = f"annotation {self.items[first].get('id')} of {_name(self.images[self.image[first]])}"
        return [("wrong" if count > tolerated * len(self) else "note",
                 f"{count} of {len(self)} persons {what}, the first is {place}; {remedy}")]


class Report:
    """Prints findings as they come, and counts what is wrong."""

    def __init__(self):
        self.wrong = 0

    def add(self, check, summary, findings):
        """Findings are pairs of "note" or "wrong", and what; the summary is for when nothing is wrong."""
        wrong = sum(level == "wrong" for level, _ in findings)
        self.wrong += wrong
        for level, text in ([("ok", summary)] if summary and not wrong else []) + findings:
            print(f"{check:<12}{level:<7}{text}", flush=True)

    def end(self):
        """Print the verdict. Returns the exit code: 0, or 2 where something is wrong."""
        print(f"{self.wrong} wrong" if self.wrong else "nothing is wrong")
        return 2 if self.wrong else 0


def check(config):
    """Print what is wrong with the data of a config, and whether its network learns one batch of them.

    Returns:
        Exit code: 0, or 2 where something is wrong.
    """
    report = Report()
    check_batch(report, check_data(report, config), config)
    return report.end()


def check_data(report, config):
    """Report on every entry of a config's `data`.

    Returns:
        The best persons or photographs of them, for `check_batch`.
    """
    batch = []
    for entry in config.data:
        try:
            labels, findings = read_labels(entry, config)
        except BadInput as error:
            report.add("files", "", [("wrong", str(error))])
            continue
        readable = check_files(report, entry, labels, findings)
        persons = labels[~labels.crowd]
        if config.task == "pose":
            few = persons.labelled.sum(1) < config.min_keypoints
            check_boxes(report, persons[~few], f"{few.sum()} with fewer than {config.min_keypoints} keypoints left out")
            check_keypoints(report, persons[~few], config)
            check_left_right(report, persons[~few], config)
            batch += best_persons(persons[~few], readable)
        else:
            check_boxes(report, persons, f"{labels.crowd.sum()} regions to ignore")
            check_persons(report, labels, config)
            batch += best_photos(labels, readable)
    return batch


def read_labels(entry, config):
    """Labels of an entry of `data`, and findings about annotations that cannot be read.

    Raises:
        BadInput: the file as a whole cannot be read.
    """
    schema = SCHEMAS[config.keypoints]
    images: list[dict] = []
    rows, sizeless, unfit = [], [], collections.defaultdict(list)
    for where, annotations in _shown(read_annotations(entry, schema), "reading annotations"):
        if _name(where).startswith(tuple(config.ignore_prefixes) or ("\0",)):
            continue
        if not all(isinstance(side, (int, float)) and side > 0 for side in where["size"] or (None,)):
            where["size"] = None
            sizeless.append(_name(where))
        for item in annotations:
            try:
                box, keypoints = _box_and_keypoints(item, len(schema))
                rows.append((item, len(images), where["size"] or (np.nan, np.nan), box, keypoints,
                             bool(item.get("iscrowd"))))
            except BadInput as error:
                unfit[str(error)].append(f"annotation {item.get('id')} of {_name(where)}")
        images.append(where)

    findings = [("wrong", f"{len(places)} annotations have {what}, the first is {places[0]}; correct them, or take "
                          "them out") for what, places in unfit.items()]
    if sizeless:
        findings.append(("note", f"{len(sizeless)} of {len(images)} images have no width and height in the "
                                 f"annotations, the first is {sizeless[0]}; what lies outside them is not found"))
    items, image, sizes, boxes, points, crowd = zip(*rows, strict=True) if rows else [()] * 6
    edges = np.array(boxes, float).reshape(-1, 4)
    edges[:, 2:] += edges[:, :2]
    return Labels(images, list(items), np.array(image, int), np.array(sizes, float).reshape(-1, 2), edges,
                  np.array(points, float).reshape(-1, len(schema), 3), np.array(crowd, bool)), findings


def _box_and_keypoints(item, count):
    """bbox (4,) and keypoints (count, 3) of an annotation; BadInput says what is wrong with them or their scores."""
    box = _numbers(item.get("bbox"), (4,), "a bbox that is not four numbers")
    keypoints = _numbers(item.get("keypoints") or [0] * 3 * count, (count, 3), "keypoints that are not numbers")
    what = f"keypoint_scores that are not {count} numbers in 0..1"
    scores = _numbers(item.get("keypoint_scores", [1] * count), (count,), what)
    if (scores < 0).any() or (scores >= 2).any():  # some teachers' peaks are a little above 1
        raise BadInput(what)
    return box, keypoints


def _numbers(values, shape, what):
    try:
        array = np.array(values).reshape(shape)
    except ValueError as error:
        raise BadInput(what) from error
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():  # numbers in quotes would be added as texts
        raise BadInput(what)
    return array.astype(float)


def _shown(items, what):
    """The items, under a progress bar where somebody looks."""
    return tqdm(items, desc=what, leave=False, disable=None)


def _name(where):
    return Path(where["image"]).name


def check_files(report, entry, labels, findings):
    """Are the images there, and whole? Returns the indices of those that were decoded."""
    paths = [str(Path(where["image"]).parent) if where["span"] else where["image"] for where in labels.images]
    there = {path: Path(path).is_file() for path in _shown(dict.fromkeys(paths), "looking for images")}
    missing = [path for path, found in there.items() if not found]
    if missing:
        findings.append(("wrong", f"{len(missing)} of {len(there)} images are missing, the first is {missing[0]}; "
                                  "fetch them, or take them out of the annotations"))
    if not there:
        findings.append(("wrong", f"{entry} lists no images"))
    present = np.flatnonzero([there[path] for path in paths])
    sample = present[np.linspace(0, len(present) - 1, min(DECODED, len(present))).astype(int)]
    readable, reasons = [], []
    for index in _shown(sample, "decoding images"):
        try:
            read_stored(Photo(boxes=np.zeros((0, 5)), **labels.images[index]))
            readable.append(int(index))
        except BadInput as error:
            reasons.append(str(error))
    if reasons:
        findings.append(("wrong", f"{len(reasons)} of {len(sample)} images tried cannot be used: {reasons[0]}"))
    report.add("files", f"{entry}: {len(labels.images)} images with {len(labels)} annotations, all there; "
                        f"{len(sample)} decoded", findings)
    return readable


def check_boxes(report, persons, summary):
    boxes, labelled, images = persons.boxes, persons.labelled, persons.sizes
    sides = boxes[:, 2:] - boxes[:, :2]
    solid = (sides > 0).all(1)
    inside = np.clip(np.minimum(boxes[:, 2:], images) - np.maximum(boxes[:, :2], 0), 0, None).prod(1)
    outside = solid & (inside < sides.prod(1) / 2)
    beyond = np.concatenate([-boxes[:, :2], boxes[:, 2:] - images], 1).max(1, initial=0) > sides.max(1, initial=0) / 4
    points, slack = persons.keypoints[..., :2], sides[:, None] / 10
    held = ((points >= boxes[:, None, :2] - slack) & (points <= boxes[:, None, 2:] + slack)).all(-1) & labelled
    corners = "is bbox left, top, width, height?"
    findings = [
        *persons.find(~solid, "have a box without width or height", "correct them, or take them out"),
        *persons.find(outside, "have a box that lies mostly outside the image", corners),
        *persons.find(solid & beyond & ~outside, "have a box that reaches far out of the image", corners, 0.05),
        *persons.find(solid & (held.sum(1) < labelled.sum(1) / 2), "have a box that does not hold most of their "
                      "keypoints", "are both of the same person, in the same pixels?", 0.05),
        *persons.find(_doubles(persons), "have the box of another one of the image (IoU > 0.95)", "was somebody "
                      "labelled twice?", 0.005)]
    if not len(persons):
        findings.append(("wrong", f"there is nobody to train on; {summary}"))
    report.add("boxes", f"{len(persons)} persons; {summary}", findings)


def _doubles(persons):
    """(N,) which boxes are those of an earlier person of the same image."""
    found = np.zeros(len(persons), bool)
    order = np.argsort(persons.image, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(persons.image[order])) + 1):
        if len(rows) > 1:
            found[rows] = np.tril(box_iou(persons.boxes[rows], persons.boxes[rows]) > 0.95, -1).any(1)
    return found


def check_keypoints(report, persons, config):
    names, labelled = np.array(SCHEMAS[config.keypoints].names), persons.labelled
    points, visibility = persons.keypoints[..., :2], persons.keypoints[..., 2]
    outside = labelled & ((points < -1) | (points > persons.sizes[:, None])).any(-1)
    low, high = (np.where(labelled[..., None], points, beyond) for beyond in (np.inf, -np.inf))
    findings = [
        *persons.find(~np.isin(visibility, (0, 1, 2)).all(1), "have visibilities other than 0, 1, 2",
                      "0 is not labelled, 1 hidden, 2 visible; a confidence belongs in keypoint_scores", 0.0),
        *persons.find(outside.any(1), "have labelled keypoints outside the image",
                      "are they in its pixels, and those without a label marked 0?", 0.02),
        *persons.find((labelled & (points == 0).all(-1)).any(1), "have labelled keypoints at (0, 0)",
                      "those without a label have visibility 0"),
        *persons.find((labelled.sum(1) > 2) & (high.max(1) - low.min(1) < 1).all(1), "have all their keypoints at one "
                      "place", "correct them, or take them out")]
    shares = labelled.sum(0) / max(1, len(persons))
    for rare, words in ((shares == 0, "on nobody"), ((shares > 0) & (shares < 0.01), "on less than 1 %")):
        if rare.any():
            findings.append(("note", f"{', '.join(names[rare])}: labelled {words}, and so not learnt"))
    report.add("keypoints", "labelled on " + ", ".join(
        f"{share:.0%} {name}" for share, name in zip(shares, names, strict=True)), findings)


def facing(keypoints, schema):
    """Which way round the pairs of persons are, by the measure at the top of this file.

    Args:
        keypoints: (N, K, 3) x, y, and 0 where not labelled.

    Returns:
        (N, P) 1 facing, -1 the other way round, 0 cannot be said; and the P pairs' names, such as "elbow".
    """
    pairs = [name.removeprefix("left_") for name in schema.names if name.startswith("left_")]
    lefts, rights = ([schema.names.index(f"{side}_{pair}") for pair in pairs] for side in ("left", "right"))
    middles = (keypoints[:, lefts, :2] + keypoints[:, rights, :2]) / 2
    seen = (keypoints[:, lefts, 2] > 0) & (keypoints[:, rights, 2] > 0)
    shoulder, hip = pairs.index("shoulder"), pairs.index("hip")
    up = middles[:, shoulder] - middles[:, hip]
    length = np.linalg.norm(up, axis=1)
    across = np.stack([-up[:, 1], up[:, 0]], 1) / np.maximum(length, 1)[:, None] ** 2
    apart = np.einsum("npx,nx->np", keypoints[:, lefts, :2] - keypoints[:, rights, :2], across)
    least = np.array([APART / 3 if pair in ("eye", "ear") else APART for pair in pairs])
    judged = seen & seen[:, [shoulder]] & seen[:, [hip]] & (length > 1)[:, None] & (np.abs(apart) > least)
    return np.where(judged, np.sign(apart), 0).astype(int), pairs


def check_left_right(report, persons, config):
    schema, findings, agreeing = SCHEMAS[config.keypoints], [], {}
    signs, pairs = facing(persons.keypoints, schema)
    for column, pair in enumerate(pairs):
        agreement = signs[:, column] * np.sign(signs.sum(1) - signs[:, column])
        if np.count_nonzero(agreement) >= JUDGED:
            agreeing[pair] = np.mean(agreement[agreement != 0] > 0)
    if odd := [f"{pair} ({share:.0%})" for pair, share in agreeing.items() if share < AGREE]:
        findings.append(("wrong", f"left and right {', '.join(odd)} disagree with the person's other keypoints; is "
                                  f"their order that of keypoints = {schema.name!r}?"))

    votes = np.sign(signs.sum(1))
    face = [schema.names.index(name) for name in ("nose", "left_eye", "right_eye") if "left_eye" in schema.names]
    visible = (persons.keypoints[:, face, 2] == 2).all(1)
    judged, least, who = visible & (votes != 0), FACING, "visible faces"
    if not face or judged.sum() < JUDGED:
        judged, least, who = votes != 0, ANYBODY_FACING, "persons"
    share = np.mean(votes[judged] > 0) if judged.any() else 0.0
    summary = f"{share:.0%} of {judged.sum()} {who} look at the camera, going by left and right"
    if judged.sum() < JUDGED:
        findings.append(("note", f"only {judged.sum()} persons have both shoulders and hips apart: too few to judge"))
    elif share < least:
        findings.append(("wrong", f"only {summary}; left and right are exchanged in the annotations, or the pictures "
                                  "are mirrored"))
    elif share < least + 0.15:
        findings.append(("note", f"only {summary}; are they exchanged in a part of the annotations?"))
    if turned := _turned_by_flip(persons[votes != 0], config):
        findings.append(("wrong", f"a flip leaves left and right {', '.join(turned)} unexchanged; see flip_pairs of "
                                  f"{schema.name!r} in runtime/keypoints.py"))
    report.add("left, right", f"{summary}; pairs agree: " + ", ".join(
        f"{pair} {share:.0%}" for pair, share in agreeing.items()), findings)


def _turned_by_flip(persons, config):
    """Pairs that are the other way round in mirrored crops, although the mirrored person faces the camera no less."""
    schema, mirror, rng = SCHEMAS[config.keypoints], replace(config, flip=1.0), np.random.default_rng(config.seed)
    crops = [draw_crop(person_of({"image": ""}, item), mirror, rng)[1] for item in persons.items[:FLIPPED]]
    before, pairs = facing(persons.keypoints[:FLIPPED], schema)
    after, _ = facing(np.reshape(crops, (-1, len(schema), 3)), schema)
    return [pair for pair, count in zip(pairs, (before * after < 0).sum(0), strict=True) if count > 0.01 * len(crops)]


def check_persons(report, labels, config):
    """Of the detector: how many persons in an image, and how large at the network's input."""
    persons, findings = labels[~labels.crowd], []
    counts = np.bincount(persons.image, minlength=len(labels.images))
    scale = np.min(config.input_size / persons.sizes, axis=1)
    sides = np.sqrt(np.clip(persons.boxes[:, 2:] - persons.boxes[:, :2], 0, None).prod(1)) * scale
    sides = sides[np.isfinite(sides)]
    empty, small = (np.mean(which) if len(which) else 0.0 for which in (counts == 0, sides < SMALL))
    if empty > 0.5:
        findings.append(("note", f"{empty:.0%} of the images show nobody; sampling can have them drawn less often"))
    if small > 0.1:
        findings.append(("note", f"{small:.0%} of the persons are smaller than {SMALL:.0f} pixels at the input; "
                                 "a larger input_size shows them larger"))
    if np.any(counts > MAX_BOXES):
        findings.append(("note", f"{np.sum(counts > MAX_BOXES)} images have more than {MAX_BOXES} persons; the others "
                                 "are taken for background"))
    median = f"{np.median(sides):.0f} pixels at the input, " if len(sides) else ""
    report.add("persons", f"{len(persons) / max(1, len(counts)):.1f} in an image, none in {empty:.0%}; half are below "
                          f"{median}{small:.0%} below {SMALL:.0f}", findings)


def best_persons(persons, readable):
    """Persons to learn by heart, one of an image: pairs of rank and Person. Those with the most keypoints rank highest,
    among them large and broad ones, whose poses are less alike than those of people who stand."""
    breadth = (persons.boxes[:, 2:] - persons.boxes[:, :2]).min(1, initial=np.inf)
    rows = np.flatnonzero(np.isin(persons.image, readable) & (breadth > 0))
    ranks = sorted((int(persons.labelled[row].sum()), float(breadth[row]), int(row)) for row in rows)
    of_image = {persons.image[row]: (rank, row) for *rank, row in ranks}
    return [(rank, person_of(persons.images[image], persons.items[row])) for image, (rank, row) in of_image.items()]


def best_photos(labels, readable):
    """Photos to learn by heart, those whose smallest person is largest first: pairs of rank and Photo."""
    photos = []
    for image in readable:
        here = labels.image == image
        boxes, crowd = labels.boxes[here], labels.crowd[here]
        smallest = (boxes[~crowd, 2:] - boxes[~crowd, :2]).min(initial=np.inf)
        if 0 < smallest < np.inf:
            columns = np.column_stack([boxes, np.where(crowd, -1, 1)]).astype(np.float32)
            photos.append(([float(smallest)], Photo(boxes=columns, **labels.images[image])))
    return photos
