"""COCO keypoint AP of an engine or a training snapshot, measured through the very code that streams.

Whose boxes?
    python -m eval.coco --annotations person_keypoints_val2017.json --images val2017          annotated ones
    python -m eval.coco --annotations FILE --images DIR --detector models/person.onnx         our detector's
    python -m eval.coco --annotations FILE --images DIR --detections human_detection.json     somebody else's

Which network?
    python -m eval.coco --engine models/pose.onnx …                                           an engine
    python -m eval.coco --checkpoint output/model_dump/COCO --epoch 140 --gpu 0 --flip-test … a snapshot of training

A test set without persons (image_info_test-dev2017.json) gives no AP but a file to upload. MPII's keypoints give PCKh
and result.mat too; for PoseTrack, `python -m eval.posetrack` turns keypoints.json into one file a video.

A run that was stopped goes on with --continue; --workers 4 shares the images out to four processes.

Writes to --out: keypoints.json (COCO's results format) and metrics.json (pycocotools' ten numbers, equal to 1e-9, and
the protocol that they were measured under, which is all of it for a test set); while it runs, journal.jsonl, a line an
image that is done.
"""

from contextlib import closing
from pathlib import Path

from eval.annotations import check_images, load_annotations
from eval.detections import load_detections
from eval.mpii import pckh_of, pckh_table, write_mat
from eval.options import check_options, parse_arguments
from eval.predictions import (
    Journal,
    Predictions,
    check_same_images,
    finished_run,
    flat_protocol,
    write_results,
)
from eval.report import (
    describe_outcome,
    describe_protocol,
    draw_pictures,
    prepare_folder,
    summary,
    write_upload,
)
from eval.scoring import collect, evaluated, image_similarities, images_to_read, jobs_of, metrics_of
from eval.subject import check_schema, make_runner, open_subject
from eval.workers import run_jobs
from runtime.errors import BadInput, run_command
from runtime.files import write_json
from runtime.walkers import write_stills

RENDERED_PICTURES, RENDERED_SEED = 60, 100_000


def main():
    arguments = parse_arguments(__doc__)
    check_options(arguments)
    if arguments.annotations is None:
        arguments.annotations, arguments.images = rendered_people(arguments.out)
    finds_boxes = arguments.detector is not None or arguments.detections is not None
    annotations = load_annotations(arguments.annotations, arguments.limit, test_set=finds_boxes)
    detections = None
    if arguments.detections is not None:
        detections = load_detections(arguments.detections, annotations, arguments.min_score, arguments.min_area)
    images = images_to_read(annotations, arguments.detector, detections)
    check_images(images, arguments.images)
    subject = open_subject(arguments)
    check_schema(subject, annotations)
    runner = make_runner(arguments, subject)
    protocol = describe_protocol(arguments, subject, annotations, detections, runner)
    if arguments.resume:
        finished = finished_run(arguments.out, flat_protocol(protocol), images, arguments.images)
        if finished is not None:
            print(f"the run in {arguments.out} was finished on {finished.get('date')}, with {finished.get('poses')} "
                  "poses: nothing to do; leave --continue out to measure anew")
            return
    prepare_folder(arguments.out)
    journal = Journal(arguments.out / "journal.jsonl", run_stamp(arguments, protocol), arguments.resume)
    check_same_images(journal, images, arguments.images)
    predictions = Predictions(journal)
    if predictions.images:
        print(f"going on after {predictions.images} of {len(images)} images")

    jobs = jobs_of(images[predictions.images:], annotations, arguments.detector, detections)
    try:
        with closing(run_jobs(jobs, arguments, runner)) as done:
            collect(done, predictions, len(images))
    except (BadInput, KeyboardInterrupt):
        if predictions.persons:
            write_results(arguments.out / "keypoints.json", predictions)
            print(f"kept {predictions.persons} poses of {predictions.images} images in {arguments.out}/keypoints.json; "
                  "the same command with --continue goes on there")
        raise
    write_results(arguments.out / "keypoints.json", predictions)
    protocol |= describe_outcome(arguments, annotations, predictions)
    score(arguments, subject, annotations, predictions, protocol)
    journal.remove()


def run_stamp(arguments, protocol):
    """What must be the same for --continue, or a run would be put together from different ones."""
    return {**flat_protocol(protocol), "on_cpu": arguments.gpu == "cpu"}


def score(arguments, subject, annotations, predictions, protocol):
    """Metrics, tables, pictures: what follows once the poses are there."""
    similarities = None
    schema = subject.engine.schema
    if schema.name == "mpii":
        write_mat(arguments.out / "result.mat", annotations, predictions.poses_of())
        print(f"wrote {arguments.out}/result.mat for MPII's evaluation")
    if annotations.is_test_set:
        print(f"{annotations.path} is a test set: no AP here; {predictions.persons} poses of {len(annotations.images)} "
              f"images are in {arguments.out}/keypoints.json")
        write_json(arguments.out / "metrics.json", {"protocol": protocol}, indent=2)
        if schema.name == "coco":
            print(write_upload(arguments.out, annotations, predictions, subject.name))
    else:
        scoring = evaluated(annotations, predictions.each_result(), None if schema.name == "coco" else schema.sigmas,
                            matches=False)
        metrics = metrics_of(scoring)
        # PCKh compares person by person, which boxes that were found cannot give.
        has_pckh = schema.name == "mpii" and protocol["boxes"] == "ground truth"
        pckh = {"PCKh": pckh_of(annotations, predictions.poses_of())} if has_pckh else {}
        write_json(arguments.out / "metrics.json", {**metrics, **pckh, "protocol": protocol}, indent=2)
        print(summary(metrics, protocol, predictions))
        if pckh:
            print(pckh_table(pckh["PCKh"]))
        print(f"wrote {arguments.out}/keypoints.json and metrics.json")
        similarities = image_similarities(scoring, annotations)
    if arguments.draw:
        folder = Path("output/vis") / subject.name
        drawn = draw_pictures(folder, arguments.draw, annotations, predictions, similarities, arguments.images, schema)
        print(f"drew {drawn} pictures to {folder}")
    if schema.name == "posetrack":
        print(f"for PoseTrack's own evaluation: python -m eval.posetrack --results {arguments.out}/keypoints.json")


def rendered_people(out):
    """Pictures to measure on where the user has none: seeds that training does not use. Returns truth and folder."""
    truth, images = out / "rendered.json", out / "rendered"
    if not truth.is_file():
        prepare_folder(out)
        write_stills(images, truth, RENDERED_PICTURES, seed=RENDERED_SEED)
    print(f"no --annotations given: measuring on {RENDERED_PICTURES} rendered pictures, which say little of photos")
    return truth, images


if __name__ == "__main__":
    run_command(main)
