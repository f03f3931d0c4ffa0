"""Figures for the training curve, by the code that streaming and evaluation run."""

import contextlib
import io

from runtime.detect import PersonDetector
from runtime.keypoints import SCHEMAS
from runtime.pose import PoseEstimator
from train.datasets import find_annotations
from train.network_engine import NetworkEngine


def validator(config):
    """A function network → figures on `config.validation`, or None where no such folder is given.

    Pose networks get the keypoint AP on annotated boxes. The detector gets the AP of its boxes, and "found", the share
    of persons with keypoints that a box of score above 0.3 overlaps by half.
    """
    if not config.validation:
        return None
    file, images = find_annotations(config.validation)
    from eval.annotations import check_images, load_annotations  # needs pycocotools, which training does not
    from eval.scoring import evaluate
    annotations = load_annotations(file)
    check_images(annotations.images, images)

    def pose_figures(network):
        figures = evaluate(PoseEstimator(NetworkEngine(network, config)), annotations, images,
                           sigmas=SCHEMAS[config.keypoints].sigmas)
        return {name: round(figures[name], 4) for name in ("AP", "AP50", "AR")}

    def person_figures(network):
        return box_figures(PersonDetector(NetworkEngine(network, config), threshold=0.05), annotations, images)

    return pose_figures if config.task == "pose" else person_figures


def box_figures(detector, annotations, images):
    """AP and AP50 of a detector's boxes by pycocotools, and the share of persons with keypoints that it finds."""
    from pycocotools.cocoeval import COCOeval

    from eval.annotations import read_image
    from eval.scoring import count_found, person_boxes
    results, found, persons = [], 0, 0
    for image in annotations.images:
        boxes, scores = detector(read_image(image, images))
        wanted = annotations.persons.get(image["id"], [])
        found, persons = found + count_found(boxes, scores, person_boxes(wanted)), persons + len(wanted)
        results += [{"image_id": image["id"], "category_id": annotations.category_id, "score": float(score),
                     "bbox": [float(left), float(top), float(right - left), float(bottom - top)]}
                    for (left, top, right, bottom), score in zip(boxes, scores, strict=True)]
    if not results:
        return {"AP": 0.0, "AP50": 0.0, "found": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(annotations.index, annotations.index.loadRes(results), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return {"AP": round(float(scoring.stats[0]), 4), "AP50": round(float(scoring.stats[1]), 4),
            "found": round(found / max(1, persons), 4)}
