"""What a training run is: defaults here, a TOML file over them, `--set key=value` over that."""

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from runtime.errors import BadInput


@dataclass
class Config:
    """One training run. Lengths in pixels of the network's input, angles in degrees."""

    task: str = "pose"  # "pose", or "person" for the detector
    name: str = ""  # folder of this run under output/model_dump; the task's name if empty

    # Data: folders that hold person_keypoints*.json and images/, as many as wanted.
    data: list[str] = field(default_factory=lambda: ["data/people"])
    validation: str = ""  # such a folder too, for the AP curve; never trained on
    sampling: dict[str, float] = field(default_factory=dict)  # file name prefix → how often its images are drawn
    ignore_prefixes: list[str] = field(default_factory=list)  # file name prefixes left out
    min_keypoints: int = 5  # persons with fewer are not trained on

    # Network
    input_size: list[int] = field(default_factory=lambda: [192, 256])  # width, height
    backbone: str = "mobilenetv2"  # or "resnet50"
    backbone_weights: str = "imagenet"  # downloads; or a keras.applications no-top .weights.h5 file; "" for none
    freeze_stem: bool = True  # keep the ImageNet layers below stride 8: half the cost of a step
    init_weights: str = ""  # start from these weights of the same network instead
    head: str = "heatmap"  # pose: or "simcc"
    attention_blocks: int = 2
    attention_width: int = 192
    decoder_width: int = 128
    sigma: float = 2.0  # heatmap: of the target Gaussian, in cells

    # Optimisation: warm-up, constant, then cosine to zero over the last epochs. A run can be extended at any
    # time with more epochs; only its tail repeats.
    batch: int = 32  # over all devices
    epochs: int = 140
    samples_per_epoch: int = 20000
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    decay_epochs: int = 20
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 1

    # Augmentation
    flip: float = 0.5  # chance
    scale: float = 0.3  # the person is 1 ± this times its usual size
    shift: float = 0.05  # of the crop's size, standard deviation
    rotation: float = 40.0  # degrees, at most; pose only
    rotation_chance: float = 0.6
    half_body: float = 0.3  # chance of a crop of the upper or lower body alone; pose only
    mosaic: float = 0.0  # chance of four photos in one input; detector only
    occlusion: float = 0.3  # chance of a patch over part of the crop
    low_resolution: float = 0.2  # chance of a crop shrunk and enlarged again
    colour: float = 0.6  # chance of other brightness, contrast, saturation and hue

    def __post_init__(self):
        if self.task not in ("pose", "person"):
            raise BadInput(f"task = {self.task!r} is neither 'pose' nor 'person'")
        for key in ("batch", "epochs", "samples_per_epoch", "warmup_steps", "attention_width", "decoder_width"):
            if getattr(self, key) < 1:
                raise BadInput(f"{key} = {getattr(self, key)} is less than 1")
        sides = self.input_size
        if len(sides) != 2 or any(type(side) is not int or side < 32 or side % 32 for side in sides):
            raise BadInput(f"input_size = {self.input_size} is not [width, height] in multiples of 32")
        if self.attention_width % 32:
            raise BadInput(f"attention_width = {self.attention_width} is not a multiple of 32, the width of a head")
        if not all(isinstance(folder, str) for folder in self.data):
            raise BadInput(f"data = {self.data} is not a list of folders")
        self.decay_epochs = max(1, min(self.decay_epochs, self.epochs))
        self.name = self.name or self.task


def load_config(path, overrides=()):
    """Config from a TOML file and `key=value` strings (values as in Python; bare words are strings)."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no config at {path}; the project's own are in configs/")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
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


def _parse(text):
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
