"""What a training run is: defaults here, a TOML file over them, `--set key=value` over that."""

import ast
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from runtime.errors import BadInput
from runtime.keypoints import PERSON_PADDING, SCHEMAS

CHOICES = {
    "task": ("pose", "person"),
    "keypoints": tuple(SCHEMAS),
    "loss": ("cross_entropy", "squared"),
    "batch_norm": ("train", "sync", "frozen"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("cosine", "step"),
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
}


@dataclass
class Config:
    """One training run. Lengths in pixels of the network's input, angles in degrees."""

    task: str = "pose"  # "pose", or "person" for the detector
    name: str = ""  # of this run's folders under output/{model_dump,log,vis}; the task's name if empty
    keypoints: str = "coco"  # what a pose network finds: "coco", "mpii" or "posetrack"

    # Data: COCO keypoint JSON files, or folders that hold one person_keypoints*.json and images/; as many as wanted.
    data: list[str] = field(default_factory=lambda: ["data/people"])
    validation: str = ""  # one more, for the AP curve; never trained on
    validate_every: int = 1  # epochs
    sampling: dict[str, float] = field(default_factory=dict)  # file name prefix → how often its images are drawn
    ignore_prefixes: list[str] = field(default_factory=list)  # file name prefixes left out
    min_keypoints: int = 5  # persons with fewer are not trained on
    max_unreadable: int = 20  # images that cannot be decoded are named and skipped; more than so many end the run
    workers: int = -1  # processes that load images: -1 one a core, 0 none, the trainer loads them itself

    # Network
    input_size: list[int] = field(default_factory=lambda: [192, 256])  # width, height
    padding: float = PERSON_PADDING  # pose: sides of what is cut by those of the person's box, here and in the engine
    stretch: float = 1.0  # detector: by how much a frame may be drawn out in one direction to fill more of the input
    backbone: str = "mobilenetv2"  # or resnet50, resnet101, resnet152, resnet_v1_50, resnet_v1_101, resnet_v1_152
    # "imagenet" downloads; "" for none; or a file: keras.applications' no-top .weights.h5, for resnet_v1_* TF-Slim's
    # .ckpt
    backbone_weights: str = "imagenet"
    # mobilenetv2: channels inside each of its 17 blocks, where `train.prune` has taken some out; []: as published
    expansions: list[int] = field(default_factory=list)
    freeze_stem: bool = True  # keep the ImageNet layers up to stride 4: a third of the cost of a step
    init_weights: str = ""  # start from these weights of the same network instead; TF-SimpleHumanPose's .ckpt too
    head: str = "heatmap"  # pose: or "simcc"
    decoder: str = "pyramid"  # pose: or "deconvolution", the classic three transposed convolutions
    attention_blocks: int = 2
    attention_width: int = 192
    channel_attention: bool = False  # pose: squeeze and excitation in the pyramid decoder
    decoder_width: int = 128
    sigma: float = 2.0  # heatmap: of the target Gaussian, in cells
    loss: str = "cross_entropy"  # heatmap: or "squared"
    aligned_cells: bool = True  # heatmap: cell j in the middle of its pixels; false: at pixel stride * j, as the seed's
    batch_norm: str = "train"  # "sync": statistics over all devices together; "frozen": as loaded, nothing learnt

    # Optimisation
    batch: int = 32  # over all devices
    accumulate: int = 1  # parts in which a device takes its share of the batch: less memory, same step
    epochs: int = 140
    samples_per_epoch: int = 20000  # 0: as many as there are
    optimizer: str = "adamw"  # or "adam", with weight_decay as an L2 penalty on kernels
    learning_rate: float = 1e-3
    # "cosine": warm-up, constant, then cosine to zero over the last decay_epochs. A run can be extended at any time
    # with more epochs; only its tail repeats. "step": warm-up, then divided by step_factor after each of step_epochs.
    schedule: str = "cosine"
    warmup_steps: int = 300
    decay_epochs: int = 20
    step_epochs: list[int] = field(default_factory=lambda: [90, 120])
    step_factor: float = 10.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of all gradients together; 0 for none
    ema: float = 0.999  # averaged weights, which are evaluated and exported; 0 for the raw ones
    precision: str = "float32"  # or mixed_float16, mixed_bfloat16
    seed: int = 1
    checkpoint_minutes: float = 10.0  # between checkpoints inside an epoch, for a run that is cut off

    # Augmentation
    flip: float = 0.5  # chance
    scale: float = 0.3  # the person is 1 ± this times its usual size: standard deviation, and where it is cut
    shift: float = 0.05  # of the crop's size, standard deviation
    rotation: float = 40.0  # degrees, standard deviation, cut at twice that; a detector wants less: person.toml has 12
    rotation_chance: float = 0.6
    half_body: float = 0.3  # chance of a crop of the upper or lower body alone; pose only
    mosaic: float = 0.0  # chance of four photos in one input; detector only
    occlusion: float = 0.3  # chance of a patch over part of the crop
    low_resolution: float = 0.2  # chance of a crop shrunk and enlarged again
    colour: float = 0.6  # chance of other brightness, contrast, saturation and hue

    def __post_init__(self):
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise BadInput(f"{key} = {getattr(self, key)!r} is none of {', '.join(choices)}")
        for key in ("batch", "accumulate", "epochs", "warmup_steps", "attention_width", "decoder_width",
                    "validate_every"):
            if getattr(self, key) < 1:
                raise BadInput(f"{key} = {getattr(self, key)} is less than 1")
        if self.loss == "squared" and self.head != "heatmap":
            raise BadInput(f"loss = 'squared' needs head = 'heatmap', not {self.head!r}")
        sides = self.input_size
        if len(sides) != 2 or any(type(side) is not int or side < 32 or side % 32 for side in sides):
            raise BadInput(f"input_size = {self.input_size} is not [width, height] in multiples of 32")
        for key in ("padding", "stretch"):
            if not 1 <= getattr(self, key) < math.inf:
                raise BadInput(f"{key} = {getattr(self, key):g} is less than 1, or not finite")
        if self.attention_width % 32:
            raise BadInput(f"attention_width = {self.attention_width} is not a multiple of 32, the width of a head")
        if not all(type(epoch) is int for epoch in self.step_epochs):
            raise BadInput(f"step_epochs = {self.step_epochs} is not a list of whole numbers")
        if not all(type(width) is int and width > 0 for width in self.expansions):
            raise BadInput(f"expansions = {self.expansions} is not a list of whole numbers above 0")
        if not all(isinstance(folder, str) for folder in self.data):
            raise BadInput(f"data = {self.data} is not a list of folders and JSON files")
        self.decay_epochs = max(1, min(self.decay_epochs, self.epochs))
        self.name = self.name or self.task


def add_config_arguments(parser, default="configs/pose.toml"):
    """--config and --set of a command; `load_config(arguments.config, arguments.overrides)` reads them."""
    parser.add_argument("--config", default=default, help="TOML file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override a key of the config; may be repeated")


def load_config(path, overrides=()):
    """Config from a TOML file and `key=value` strings (values as in Python; bare words are strings).

    A file with `base = "other.toml"`, which lies beside it, has the keys of that file but for its own.
    """
    values = _read_toml(Path(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise BadInput(f"--set {override} has no '='; write --set key=value")
        values[key] = _parse(text)

    defaults = vars(Config())
    for key, value in values.items():
        if key not in defaults:
            raise BadInput(f"unknown key {key!r} in {path} or --set; the keys are {', '.join(defaults)}")
        wanted = type(defaults[key])
        if wanted is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not wanted:
            raise BadInput(f"{key} = {value!r} should be of type {wanted.__name__}")
    return Config(**values)


def _read_toml(path, within=()):
    if not path.is_file():
        raise BadInput(f"no config at {path}; the project's own are in configs/")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
    base = values.pop("base", None)
    if base is None:
        return values
    if type(base) is not str or path.parent / base in (path, *within):
        raise BadInput(f"base = {base!r} in {path} is not the name of another config beside it")
    return {**_read_toml(path.parent / base, (path, *within)), **values}


def _parse(text):
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
