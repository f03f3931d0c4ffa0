"""Figures for the training curve, by the code that streaming and evaluation run."""

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
    from eval.boxes import box_figures
    from eval.scoring import evaluate
    annotations = load_annotations(file)
    check_images(annotations.images, images)

    def pose_figures(network):
        figures = evaluate(PoseEstimator(NetworkEngine(network, config)), annotations, images,
                           sigmas=SCHEMAS[config.keypoints].sigmas)
        return {name: round(figures[name], 4) for name in ("AP", "AP50", "AR")}

    def person_figures(network):
        detector = PersonDetector(NetworkEngine(network, config), threshold=0.05)
        return {name: round(figure, 4) for name, figure in box_figures(detector, annotations, images).items()}

    return pose_figures if config.task == "pose" else person_figures
