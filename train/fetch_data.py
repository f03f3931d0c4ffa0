"""Fetches data sets into the folders that training and evaluation read.

    python -m train.fetch_data coco
    python -m train.fetch_data coco --parts val2017,annotations
    python -m train.fetch_data imagenet --parts resnet50

Stopped or killed, it goes on where it was; what is complete is skipped. Verified are the size and the SHA-256 that the
catalogue below names, and, of what it names none for, the size that the server announces; unpacking checks the CRCs of
zip and gzip, and that detections are JSON of COCO's form. MPII and PoseTrack want registration or a look at their
terms: for these it says what to do by hand.

Licences: COCO's annotations are CC BY 4.0, its photographs under their owners' Flickr terms
(https://cocodataset.org/#termsofuse). The ImageNet weights are TensorFlow's conversion (Apache-2.0) of He et al.'s.
"""

import argparse
import json
import os
import shutil
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from runtime.download import download, readable
from runtime.errors import BadInput, run_command
from train.unpack import Damaged, unpack

ANOTHER = "choose another folder with --data"


@dataclass(frozen=True)
class Source:
    """One file on a server, and what it becomes.

    Attributes:
        url: .zip, .tar.gz or .json. folder: under the data folder, where it lands and is unpacked.
        targets: what it becomes, paths in that folder. A target appears there only when whole.
        size: bytes of the file on the server, None where unknown. sha256: its checksum, None where unknown.
        photographs: how many JPEGs a target that is a folder holds, 0 where targets are files.
    """

    url: str
    folder: str
    targets: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    photographs: int = 0

    @property
    def name(self):
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """What --parts names.

    Attributes:
        what: for --help. sources: its files. chosen: whether it is fetched without --parts.
    """

    what: str
    sources: tuple[Source, ...]
    chosen: bool = True


COCO_URL = "http://images.cocodataset.org"
SEED_URL = "https://github.com/mks0601/TF-SimpleHumanPose/releases/download/1.0"
IMAGENET_URL = "http://download.tensorflow.org/models"

# COCO's sizes and checksums: TensorFlow Datasets, tensorflow_datasets/url_checksums/coco2017.txt (commit 2282548bab48);
# numbers of photographs: its docs/catalog/coco.md. None are published of the detections.
COCO = {
    "train2017": Part("118 287 photographs to train on", (
        Source(f"{COCO_URL}/zips/train2017.zip", "COCO/images", ("train2017",), 19_336_861_798,
               "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 118_287),)),
    "val2017": Part("5 000 photographs to measure on", (
        Source(f"{COCO_URL}/zips/val2017.zip", "COCO/images", ("val2017",), 815_585_330,
               "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 5_000),)),
    "annotations": Part("keypoints of the people in both", (
        Source(f"{COCO_URL}/annotations/annotations_trainval2017.zip", "COCO",
               ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"),
               252_907_541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),)),
    "dets": Part("persons that a detector found in val2017 (55.3 AP)", (
        Source(f"{SEED_URL}/human_detection_val2017.json", "COCO/dets", ("human_detection.json",)),)),
    "test2017": Part("40 670 photographs, the list of test-dev, persons detected there", (
        Source(f"{COCO_URL}/zips/test2017.zip", "COCO/images", ("test2017",), 6_646_970_404,
               "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba", 40_670),
        Source(f"{COCO_URL}/annotations/image_info_test2017.zip", "COCO",
               ("annotations/image_info_test-dev2017.json",), 1_144_034,
               "e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8"),
        Source(f"{SEED_URL}/human_detection_test-dev2017.json", "COCO/dets", ("human_detection_test-dev2017.json",)),
    ), chosen=False),
}

# Checksums: NixOS/nixpkgs, pkgs/data/machine-learning/resnet/default.nix (commit 91f21c608b95), in Nix's base 32 there;
# size of the first: expected_bytes in TensorLayer's ResNet-50; of the checkpoints: 4 bytes a parameter.
IMAGENET = {
    f"resnet{depth}": Part(f"TF-Slim's ResNet-{depth} v1, a checkpoint of about {about}", (
        Source(f"{IMAGENET_URL}/resnet_v1_{depth}_2016_08_28.tar.gz", "imagenet_weights", (f"resnet_v1_{depth}.ckpt",),
               size, sha256),))
    for depth, about, size, sha256 in (
        (50, "0.10 GB", 95_073_259, "91a0dc25289e7ef648df304b15f06c43ce6f4446d08eb0168479dd2295101c73"),
        (101, "0.18 GB", None, "5d813fcf5e56e7c9c2483d73b46644394cdbb31f9f4bf7140fb2809f7aa11a19"),
        (152, "0.24 GB", None, "c89b549ada486d9c0db6d90e874a1a652d899f9b541ae9c430fee8251572181d"))
}
DATASETS = {"coco": COCO, "imagenet": IMAGENET}


@dataclass(frozen=True)
class ByHand:
    """A data set that a person must fetch; {data} in these texts is the data folder.

    Attributes:
        needed: patterns of files, one of each of which shows that it is there. convert: the command that follows.
        steps: what to do.
    """

    needed: tuple[str, ...]
    convert: str
    steps: str


BY_HAND = {
    "mpii": ByHand(
        ("MPII/images/*.jpg", "MPII/mpii_human_pose_v1_u12_1.mat"), "python -m train.mpii2coco", """
1. Read http://human-pose.mpi-inf.mpg.de: for research, no commercial use (the photographs are from other people's
   videos); the annotations are under the Simplified BSD licence. Download there (#download)
       mpii_human_pose_v1.tar.gz        12.9 GB, photographs
       mpii_human_pose_v1_u12_2.zip     12.5 MB, annotations
2. Unpack to {data}/MPII/images/*.jpg and {data}/MPII/mpii_human_pose_v1_u12_1.mat:
       mkdir -p {data}/MPII
       tar -xzf mpii_human_pose_v1.tar.gz -C {data}/MPII
       unzip -j mpii_human_pose_v1_u12_2.zip '*.mat' -d {data}/MPII
3. Convert, to {data}/MPII/annotations/train.json and test.json:
       {convert}
"""),
    "posetrack": ByHand(
        ("PoseTrack/images/train/*/*.jpg", "PoseTrack/images/val/*/*.jpg",
         "PoseTrack/original_annotations/train/*.json", "PoseTrack/original_annotations/val/*.json"),
        "python -m train.posetrack2coco", f"""
1. Register at https://posetrack.net, whose terms apply, and download PoseTrack 2018
       posetrack18_images.tar.aa to .ar            frames, in 18 pieces
       posetrack18_v0.45_public_labels.tar.gz      annotations
   That site has been out of reach for long times since 2022. PoseTrack21 (https://github.com/anDoer/PoseTrack21) gives
   the same videos against a signed agreement, with annotations of its own.
2. Unpack to {{data}}/PoseTrack/images/ and {{data}}/PoseTrack/original_annotations/, each with train/, val/ and test/:
       mkdir -p {{data}}/PoseTrack
       cat posetrack18_images.tar.a? | tar -xi -f - -C {{data}}/PoseTrack
       tar -xzf posetrack18_v0.45_public_labels.tar.gz
       mv posetrack_data/annotations {{data}}/PoseTrack/original_annotations
3. Convert, to {{data}}/PoseTrack/annotations/train2018.json, val2018.json and test2018.json:
       {{convert}}
4. To measure with detected persons, put {SEED_URL}/human_detection_val.json
   at {{data}}/PoseTrack/dets/human_detection.json
"""),
}


def main():
    arguments = parse_arguments()
    data, name = Path(arguments.data), arguments.dataset
    if name in BY_HAND:
        if arguments.parts or arguments.mirror:
            raise BadInput(f"--parts and --mirror are not for {name}, which is fetched by hand; run without them")
        return explain(name, data)
    try:
        parts = choose_parts(name, arguments.parts)
        fetch_parts(DATASETS[name], parts, data, arguments.mirror, arguments.keep_archives)
    except OSError as error:
        raise BadInput(f"{error.filename or data}: {error.strerror}; see to the folder, or {ANOTHER}") from error
    return 0


def parse_arguments():
    table = ["parts                       to download"]
    for name, parts in DATASETS.items():
        chosen = ",".join(part for part in parts if parts[part].chosen)
        table += [f"  {name:8}  {part:14}{download_size(parts[part]):>9}  {parts[part].what}" for part in parts]
        table += [f"  {'':8}  without --parts: {chosen}", ""]
    parser = argparse.ArgumentParser(
        prog="python -m train.fetch_data", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fetch a data set into the folders that training and evaluation read. Stopped, it goes on.",
        epilog="\n".join([*table, "mpii, posetrack: not to be downloaded by a program; says what to do by hand"]))
    parser.add_argument("dataset", choices=[*DATASETS, *BY_HAND])
    parser.add_argument("--parts", metavar="A,B", help="what to fetch, of the table below")
    parser.add_argument("--data", default="data", metavar="FOLDER", help="where to (default: %(default)s)")
    parser.add_argument("--mirror", metavar="URL", help="http://host/prefix to stand for the scheme and host of every "
                        "address: http://host/prefix/zips/val2017.zip")
    parser.add_argument("--keep-archives", action="store_true", help="leave .zip and .tar.gz files after unpacking")
    return parser.parse_args()


def download_size(part):
    """In words, "?" where the size of one of its files is unknown and the rest is little."""
    known = sum(source.size or 0 for source in part.sources)
    return readable(known) if known else "?"


def choose_parts(dataset, parts):
    """Names of the parts that --parts (comma-separated, or None) asks for. Raises BadInput for an unknown one."""
    known = DATASETS[dataset]
    if parts is None:
        return [name for name in known if known[name].chosen]
    chosen = list(dict.fromkeys(name.strip() for name in parts.split(",")))
    for name in chosen:
        if name not in known:
            raise BadInput(f"--parts: {name!r} is no part of {dataset}; it has {', '.join(known)}")
    return chosen


def on_mirror(url, mirror):
    """The URL with its scheme and host replaced by the mirror's. Raises BadInput unless that is http or https."""
    if mirror is None:
        return url
    split = urllib.parse.urlsplit(mirror)
    if split.scheme not in ("http", "https") or not split.netloc:
        raise BadInput(f"--mirror {mirror!r} is no address; write http://host or http://host/prefix")
    return mirror.rstrip("/") + urllib.parse.urlsplit(url).path


def places(source, data):
    """Where the targets are or will be, in words."""
    return " and ".join(str(data / source.folder / target) for target in source.targets)


def is_complete(source, data):
    """Whether all targets are there. Raises BadInput where a folder holds some photographs only."""
    for target in source.targets:
        path = data / source.folder / target
        if source.photographs and path.is_dir():
            with os.scandir(path) as entries:
                count = sum(entry.name.endswith(".jpg") for entry in entries)
            if 0 < count < source.photographs:
                raise BadInput(f"{path} holds {count} of {source.photographs} photographs; move or delete that folder, "
                               "and the same command fetches it whole")
            if not count:
                return False
        elif not path.is_file():
            return False
    return True


def check_room(sources, data, keep):
    """Raise BadInput where the disk cannot hold the sources, of which only known sizes count. A source's contents are
    taken to be as large as its archive, which goes when they are unpacked, unless `keep`."""
    sizes = [source.size or 0 for source in sources]
    if not any(sizes):
        return
    largest = sources[sizes.index(max(sizes))]
    here = [data / source.folder / f"{source.name}{suffix}" for source in sources for suffix in ("", ".part")]
    landed = sum(path.stat().st_size for path in here if path.exists())
    needed = sum(sizes) + (sum(sizes) if keep else max(sizes)) - landed
    folder = (data / largest.folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(f"{folder} has {readable(free)} free, and this takes {readable(needed)} (downloads of "
                       f"{readable(sum(sizes))}, and their contents beside the archives); make room, ask for fewer "
                       f"--parts, or {ANOTHER}")


def fetch_parts(dataset, names, data, mirror=None, keep=False):
    """Fetch the named parts of a data set, but for what is complete. Raises BadInput, OSError."""
    missing = []
    for name in names:
        for source in dataset[name].sources:
            if is_complete(source, data):
                print(f"{name}: complete in {places(source, data)}")
            else:
                missing.append((name, source, on_mirror(source.url, mirror)))
    check_room([source for _, source, _ in missing], data, keep)
    for name, source, url in missing:
        print(f"{name}: {url} → {places(source, data)}   (Ctrl-C stops, the same command goes on)", flush=True)
        fetch(source, url, data / source.folder, keep)


def fetch(source, url, folder, keep):
    """Download one source into its folder and unpack it there. Raises BadInput, OSError."""
    archive = download(url, folder / source.name, source.size, source.sha256, elsewhere=ANOTHER)
    try:
        if archive.suffix == ".json":
            place_detections(archive, folder / source.targets[0])
            return
        unpack(archive, folder, source.targets)
    except Damaged as error:
        archive.unlink()
        raise BadInput(f"{archive} is of no use, {error}; it was removed, the same command fetches it anew") from error
    if not keep:
        archive.unlink()


def place_detections(file, target):
    """Move a JSON file to its place if it is a list of detections in COCO's results format. Raises Damaged."""
    try:
        detections = json.loads(file.read_bytes())
    except ValueError as error:
        raise Damaged(f"it is not JSON ({error})") from error
    if not (isinstance(detections, list) and detections and isinstance(detections[0], dict)
            and {"image_id", "bbox", "score"} <= set(detections[0])):
        raise Damaged("it is no list of detections with image_id, bbox and score")
    os.replace(file, target)


def explain(name, data):
    """Print what to do by hand for a data set, or next if its files are there. Returns the exit code, 0 or 2."""
    by_hand = BY_HAND[name]
    elsewhere = "" if data == Path("data") else f"   (with the paths in {data} as options, see --help)"
    convert = by_hand.convert + elsewhere
    lacking = [str(data / pattern) for pattern in by_hand.needed if not any(data.glob(pattern))]
    if not lacking:
        print(f"{name}: its files are in {data}; next: {convert}")
        return 0
    print(f"{name} has to be fetched by hand; missing: {', '.join(lacking)}")
    print(by_hand.steps.format(data=data, convert=convert), end="")
    return 2


if __name__ == "__main__":
    run_command(main)
