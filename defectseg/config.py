"""The recipe of a training run, and the description that travels inside a model file. All models are frozen.

A recipe is YAML, named by a path or, for the shipped ones, by its bare name. `key=value` changes single keys.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from defectseg.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
BitDepth = Annotated[int, Field(ge=9, le=16)]
SizeHW = tuple[PositiveInt, PositiveInt]


class Frozen(BaseModel):
    """The base of every part of a recipe or description: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Frozen):
    """The network. Names of architectures and encoders are those of segmentation-models-pytorch."""

    architecture: str = "Unet"
    encoder: str = "resnet34"
    encoder_weights: str = Field("imagenet", description="imagenet, none, or a timm-named .safetensors or .pth file")
    in_channels: Literal[1, 3] = Field(1, description="1: grey; 3: the same grey three times")
    classification_head: bool = Field(True, description="an image-level head, whose answer is the gate")
    input_scale: PositiveFloat = Field(1.0, description="the network sees the image enlarged or reduced by this")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the architecture")


class DataConfig(Frozen):
    """Which images are trained on, and what is cut out of them."""

    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] | None = Field(0, description="fold to validate on; null: train on everything")
    crop_hw: SizeHW | None = Field((256, 512), description="px; at most the largest image; null: the whole image")
    defect_crops: Share = Field(0.5, description="share of the crops that are placed on a defect")
    class_balance: Share = Field(0.0, description="share of the defect crops that goes to the classes in equal parts")
    balance_until: Share = Field(
        1.0, description="share of the training at which class_balance has fallen to 0; 1: never"
    )
    black_limit: Share = Field(0.7, description="a crop with a larger share of black is drawn again; 1: never")
    samples_per_epoch: PositiveInt | None = Field(None, description="crops in an epoch; null: one for each image")
    bit_depth: BitDepth | None = Field(
        None, description="bits that the values of 16-bit files have, 9 to 16; null: as their TIFF tag says, else 16"
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    cache: bool | Literal["auto"] = Field("auto", description="keep decoded images in memory; auto: where they fit")


class AugmentConfig(Frozen):
    """Random changes of a training crop; each value is a probability."""

    horizontal_flip: Share = 0.5
    vertical_flip: Share = 0.5
    quarter_turns: Share = Field(0.0, description="turns by 90 degrees; only where crops are square")
    brightness_contrast: Share = 0.3


class LossConfig(Frozen):
    """Weights of the parts of the loss; see defectseg.model.losses."""

    bce: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 1.0
    dice_over: Literal["pair", "batch"] = Field(
        "pair",
        description="pair: mean of per-image Dice, so small defects weigh as much as large ones; batch: Dice over all "
        "pixels of a step",
    )
    positive_weights: tuple[PositiveFloat, ...] | None = Field(None, description="one for each class; null: 1")
    empty_weight: NonNegativeFloat = Field(0.2, description="weight of the Dice term where a class is absent")
    smooth_px: PositiveFloat = Field(100.0, description="pixels added to both sides of the Dice fraction")
    lovasz: NonNegativeFloat = Field(1.0, description="weight of the Lovasz term that takes the place of Dice")
    lovasz_from: Share = Field(1.0, description="share of the training at which it does; 1: never")
    lovasz_empty_weight: NonNegativeFloat = Field(0.2, description="weight of the Lovasz term where a class is absent")
    gate: NonNegativeFloat = Field(0.2, description="weight of the image-level head")
    at_input_scale: bool = Field(
        False, description="reduce the labels by model.input_scale instead of enlarging the logits: faster"
    )


class OptimizerConfig(Frozen):
    """AdamW with a linear warm-up and a cosine down to a hundredth of the rates."""

    encoder_lr: PositiveFloat = 3e-4
    decoder_lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup: Share = Field(0.05, description="share of the steps")
    clip_norm: PositiveFloat = 1.0


class SecondStageConfig(Frozen):
    """More epochs after the first ones, on larger crops and at a lower rate."""

    epochs: Annotated[int, Field(ge=0)] = Field(0, description="0: no second stage")
    crop_hw: SizeHW | None = Field(None, description="px; at most the largest image; null: the whole image")
    batch_size: PositiveInt | None = Field(None, description="null: as in the first stage")
    samples_per_epoch: PositiveInt | None = Field(None, description="null: one for each image")
    rate_share: Share = Field(0.1, description="of the learning rates of the first stage")


class TrainingConfig(Frozen):
    """How long, in what portions and in what precision."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = Field(16, description="crops in a step, on each process")
    accumulation: PositiveInt = Field(1, description="steps whose gradients are added up")
    fit_memory: bool = Field(False, description="halve the steps, and add up more of them, until they fit into memory")
    max_minutes: PositiveFloat | None = Field(None, description="epochs are cut down to fit; training then stops")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    validate_every: PositiveInt = Field(1, description="epochs between validations; the last is always validated")
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="of averaged weights, for each step and process; 0: none are kept"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="of a run that validates: the weights that did best, or the last ones (their moving average)",
    )
    average_best: PositiveInt = Field(1, description="how many of the best epochs' weights are averaged, of keep: best")
    threshold_folds: Annotated[int, Field(ge=0)] = Field(
        0, description="without a validation fold: folds that are trained first, to choose the thresholds on"
    )
    second_stage: SecondStageConfig = SecondStageConfig()
    trackers: tuple[Literal["tensorboard"], ...] = ("tensorboard",)


class InferenceConfig(Frozen):
    """How a trained model meets an image."""

    tile_hw: SizeHW = Field((1024, 2048), description="larger images are cut into overlapping tiles of this size")
    tile_overlap_px: Annotated[int, Field(ge=0)] = 128
    tta: Literal["none", "flips", "turns"] = Field(
        "none", description="average over 4 mirrored views (flips), over 8 where the image is square (turns)"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.tile_overlap_px >= min(self.tile_hw):
            raise ValueError("tile_overlap_px must be smaller than both sides of tile_hw")
        return self


class Recipe(Frozen):
    """Everything that `train` needs to know besides the data folder and the device."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="after")
    def _turns_need_square_crops(self) -> Self:
        second = self.training.second_stage
        sizes = {"data.crop_hw": self.data.crop_hw}
        if second.epochs:
            sizes["training.second_stage.crop_hw"] = second.crop_hw
        for key, crop in sizes.items():
            if self.augment.quarter_turns and crop is not None and crop[0] != crop[1]:
                raise ValueError(f"augment.quarter_turns needs square crops, but {key} is {list(crop)}")
        return self


def changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    """The recipe with other values, taken as they are, in one of its sections."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of each recipe that comes with the package, sorted by name."""
    package = Path(__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides, values being YAML.

    Raises:
        ConfigError: no such recipe, not YAML, or keys or values that are not valid; all of them are listed at once.
    """
    source, content = _read_recipe(name_or_path)
    for override in overrides:
        apply_override(content, override)
    return parse_recipe(content, source=" with ".join([source, *overrides]))


def parse_recipe(content: Mapping[str, Any], *, source: str) -> Recipe:
    """Validate the content of a recipe; `source` names it in errors. Raises ConfigError listing every problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every key with its value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_recipe(name_or_path: str) -> tuple[str, dict[str, Any]]:
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        close = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{name_or_path}: no such file, nor a shipped recipe ({', '.join(shipped)}).{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Expected a YAML text file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' pairs at the top, found a {type(content).__name__}.")
    return str(path), content


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one key of a recipe's content to the value of a `key=value`. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{override}: expected key=value, for example training.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{override}: the value is not valid YAML; quote it if it has special signs") from None
    *parents, leaf = key.strip().split(".")
    section = content
    for parent in parents:
        if section.get(parent) is None:  # absent, or named without any key below it
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"{override}: {parent!r} holds a value, not keys")
    section[leaf] = value


def _describe(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _known_keys(problem["loc"][:-1]), n=1)
        return f"unknown key {location!r}" + (f", did you mean {close[0]!r}?" if close else "")
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}: {message}, found {problem['input']!r}" if location else message


def _known_keys(location: Sequence[str | int]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
