"""How good a detector's boxes are, poses aside."""

import contextlib
import io

from tqdm import tqdm

from eval.annotations import read_image
from eval.scoring import count_found, person_boxes


def box_figures(detector, annotations, images_dir, progress=False):
    """AP of a detector's boxes by pycocotools, and the share of persons that it finds.

    Args:
        detector: a callable like `PersonDetector`: frame → boxes (N, 4), scores (N,).
        annotations: from `load_annotations`; persons without keypoints are neither counted nor missed.
        images_dir: folder of the images.

    Returns:
        dict: AP, AP50; found, the share of persons with keypoints that `count_found` counts.
    """
    from pycocotools.cocoeval import COCOeval

    results, found = [], 0
    for image in tqdm(annotations.images, desc="evaluating", unit="image", disable=None if progress else True):
        boxes, scores = detector(read_image(image, images_dir))
        found += count_found(boxes, scores, person_boxes(annotations.persons.get(image["id"], [])))
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
    return {"AP": float(scoring.stats[0]), "AP50": float(scoring.stats[1]), "found": found / annotations.person_count}
