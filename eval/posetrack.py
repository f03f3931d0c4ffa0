"""Poses of PoseTrack 2018: AP of every joint, and one JSON a video for poseval, PoseTrack's own evaluation.

    python -m eval.coco --checkpoint output/model_dump/PoseTrack --images data/PoseTrack \\
        --annotations data/PoseTrack/annotations/val2018.json --detections data/PoseTrack/dets/human_detection.json
    python -m eval.posetrack --results output/result/PoseTrack/keypoints.json
    git clone https://github.com/leonid-pishchulin/poseval --recursive
    python poseval/py/evaluate.py --groundTruth=data/PoseTrack/original_annotations/val/ \\
        --predictions=output/result/PoseTrack/poseval/ --evalPoseEstimation

The AP printed here is poseval's (`eval.posetrack_ap`). The folder of --results gets it as posetrack.json, and in its
metrics.json for eval.gate ("PoseTrack Total"). Where the originals hold no persons, as of a test set, there is none.

Poseval wants all frames of a video, also those without labels, under the names of the original files; hence those are
read here. Nothing is tracked: a person's track_id is its number in its frame, so only --evalPoseEstimation means
something.
"""

import argparse
import json
import sys
from pathlib import Path

from eval.annotations import are_numbers, is_number
from eval.posetrack_ap import Frame, ap_table, frames_of, joint_ap
from runtime.errors import BadInput, run_command
from runtime.files import write_json
from runtime.keypoints import POSETRACK

CATEGORY = {"supercategory": "person", "id": 1, "name": "person", "keypoints": list(POSETRACK.names),
            "skeleton": [[start + 1, end + 1] for start, end in POSETRACK.limbs]}


def main():
    parser = argparse.ArgumentParser(prog="python -m eval.posetrack", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("output/result/PoseTrack/keypoints.json"), metavar="FILE",
                        help="poses that eval.coco wrote (default: %(default)s)")
    parser.add_argument("--originals", type=Path, default=Path("data/PoseTrack/original_annotations/val"),
                        metavar="DIR", help="PoseTrack's own JSON files of that split (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder of the files (default: poseval/ beside the results)")
    arguments = parser.parse_args()
    out = arguments.out or arguments.results.parent / "poseval"
    results = _read(arguments.results, list, "a list of poses")
    videos, poses = write_videos(results, arguments.originals, out)
    print(f"wrote {poses} poses of {videos} videos to {out}")
    values = score(results, arguments.originals)
    if values is not None:
        print(ap_table(values))
        keep(values, arguments.results.parent)


def score(results, originals):
    """`joint_ap` of poses against PoseTrack's own files; None, saying why, where nobody can be measured.

    Arguments as for `write_videos`, which has checked them.

    Raises:
        BadInput: labels that are no numbers, or not so many as there should be.
    """
    of_image: dict[int, list] = {}
    for result in results:
        of_image.setdefault(result["image_id"], []).append(result)
    frames: list[Frame] = []
    headless = 0
    for file in sorted(Path(originals).glob("*.json")):
        try:
            found, lacking = frames_of(_read(file, dict, "an object"), of_image)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{file} has persons whose keypoints or bbox_head are not PoseTrack 2018's ({error}); give "
                           "PoseTrack's own file") from error
        frames, headless = frames + found, headless + lacking
    if headless:
        print(f"warning: {headless} labelled persons have no bbox_head, by which PoseTrack measures, and are left out",
              file=sys.stderr)
    if not frames:
        print(f"no AP: the files of {originals} have no labelled person with a head box")
        return None
    return joint_ap(frames)


def keep(values, folder):
    """Write the AP beside the results, and into the metrics.json that eval.coco left there."""
    write_json(folder / "posetrack.json", values, indent=2)
    path = folder / "metrics.json"
    if path.is_file():
        write_json(path, {**_read(path, dict, "an object"), "PoseTrack": values}, indent=2)


def write_videos(results, originals, out):
    """Write one file a video.

    Args:
        results: poses of all videos in COCO's results format: image_id, keypoints (x, y, score)·17, score.
        originals: folder of PoseTrack 2018's JSON files, one a video, whose image ids the results have.
        out: folder to write to; files there under the same names are replaced.

    Returns:
        How many videos and poses were written.

    Raises:
        BadInput: no files, files or results of another form, or poses of an image that no file has.
    """
    files = sorted(Path(originals).glob("*.json"))
    if not files:
        raise BadInput(f"{originals} has no .json files; give PoseTrack's original_annotations/val, see "
                       "python -m train.posetrack2coco --help")
    of_image: dict[int, list] = {}
    for number, result in enumerate(results):
        if not (isinstance(result, dict) and {"image_id", "score"} <= set(result)
                and are_numbers(result.get("keypoints"), 3 * len(POSETRACK)) and is_number(result["score"])):
            raise BadInput(f"result {number} has no {len(POSETRACK)} keypoints of PoseTrack: {str(result)[:100]}; give "
                           "the keypoints.json of a network with keypoints = 'posetrack'")
        of_image.setdefault(result["image_id"], []).append(result)
    contents = {file.name: _video(_read(file, dict, "an object"), file, of_image) for file in files}
    if of_image:
        raise BadInput(f"{sum(map(len, of_image.values()))} of {len(results)} poses are of images that no file of "
                       f"{originals} lists (first: image {next(iter(of_image))}); give the folder of the same split")
    for name, content in contents.items():
        write_json(Path(out) / name, content)
    return len(contents), sum(len(content["annotations"]) for content in contents.values())


def _video(content, file, of_image):
    """The file of a video; its poses are taken out of `of_image`."""
    images = content.get("images")
    if not isinstance(images, list) or not all(isinstance(image, dict) and {"id", "file_name"} <= set(image)
                                               for image in images):
        raise BadInput(f"{file} has no list of images with id and file_name; give PoseTrack 2018's files")
    annotations: list[dict] = []
    for image in images:
        for track, result in enumerate(of_image.pop(image["id"], ())):
            values = result["keypoints"]
            located = [value for x, y in zip(values[0::3], values[1::3], strict=True) for value in (x, y, 1)]
            annotations.append({"id": len(annotations), "image_id": image["id"], "category_id": 1, "track_id": track,
                                "keypoints": located, "scores": values[2::3], "score": result["score"]})
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def _read(path, kind, what):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give the right file") from error
    except ValueError as error:  # not JSON, or not even text
        raise BadInput(f"{path} is not JSON ({error}); write it anew") from error
    if not isinstance(content, kind):
        raise BadInput(f"{path} is not {what}; give another file")
    return content


if __name__ == "__main__":
    run_command(main)
