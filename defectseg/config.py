"""The recipe: every setting of a training run and of the model that it makes.

A recipe is a YAML file. It is given as a path or, for a shipped recipe, as its bare name. `key=value` changes one key.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from defectseg.errors import ConfigError, DataError
from defectseg.text import parse_yaml, read_text

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
BitDepth = Annotated[int, Field(ge=9, le=16)]
SizeHW = tuple[PositiveInt, PositiveInt]
HeldOut = Annotated[int, Field(ge=0)] | Literal["val"]  # what a training validates on: a fold of split.csv, or val


class Frozen(BaseModel):
    """Base of every part of a recipe and of a model's description: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Frozen):
    """The network. Architecture and encoder are names of segmentation-models-pytorch."""

    architecture: str = "Unet"
    encoder: str = "resnet34"
    encoder_weights: str = Field("imagenet", description="imagenet, none, or a timm-named .safetensors or .pth file")
    in_channels: Literal[1, 3] = Field(1, description="1: grey; 3: the same grey three times")
    classification_head: bool = Field(True, description="add an image-level head that predicts the gate")
    input_scale: PositiveFloat = Field(1.0, description="scale of the network's input: 0.5 halves each side")
    options: dict[str, Any] = Field(default_factory=dict, description="more arguments for the architecture")


class DataConfig(Frozen):
    """Which images to train on, and which crops to take from them."""

    folds: Annotated[int, Field(ge=2)] = 5
    fold: HeldOut | Literal["auto"] | None = Field("auto", description="validation fold; auto: val, or 0; null: none")
    crop_hw: SizeHW | None = Field((256, 512), description="px; at most the largest image; null: the whole image")
    defect_crops: Share = Field(0.5, description="share of crops that contain a defect")
    class_balance: Share = Field(0.0, description="share of defect crops that is split equally among classes")
    balance_until: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the training after which class_balance is 0; it falls linearly; 1: constant"
    )
    black_limit: Share = Field(0.7, description="redraw crops with a larger share of black pixels; 1: never")
    samples_per_epoch: PositiveInt | None = Field(None, description="crops per epoch; null: one per image")
    bit_depth: BitDepth | None = Field(None, description="bits used in 16-bit files; null: from the TIFF tag, else 16")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    cache: bool | Literal["auto"] = Field("auto", description="keep decoded images in memory; auto: if they fit")


class AugmentConfig(Frozen):
    """Augmentation of training crops; each value is a probability."""

    horizontal_flip: Share = 0.5
    vertical_flip: Share = 0.5
    quarter_turns: Share = Field(0.0, description="rotation by multiples of 90 degrees; needs square crops")
    brightness_contrast: Share = 0.3


class LossConfig(Frozen):
    """Weights of the loss terms; see defectseg.model.losses."""

    bce: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 1.0
    dice_over: Literal["pair", "batch"] = Field(
        "pair",
        description="pair: mean of per-image Dice, so small defects weigh as much as large ones; batch: Dice over all "
        "pixels of a step",
    )
    positive_weights: tuple[PositiveFloat, ...] | None = Field(None, description="one per class; null: 1")
    empty_weight: NonNegativeFloat = Field(0.2, description="weight of the Dice term for absent classes")
    smooth_px: PositiveFloat = Field(100.0, description="pixels added to numerator and denominator of Dice")
    lovasz: NonNegativeFloat = Field(1.0, description="weight of the Lovasz term, which replaces Dice")
    lovasz_from: Share = Field(1.0, description="share of the training after which Lovasz replaces Dice; 1: never")
    lovasz_empty_weight: NonNegativeFloat = Field(0.2, description="weight of the Lovasz term for absent classes")
    gate: NonNegativeFloat = Field(0.2, description="weight of the image-level head")
    at_input_scale: bool = Field(
        False, description="reduce the labels by model.input_scale instead of enlarging the logits: faster"
    )


class OptimizerConfig(Frozen):
    """AdamW with linear warm-up, then cosine decay to 1 % of the learning rates."""

    encoder_lr: PositiveFloat = 3e-4
    decoder_lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup: Share = Field(0.05, description="share of all steps")
    clip_norm: PositiveFloat = 1.0


class SecondStageConfig(Frozen):
    """Extra epochs at the end, on larger crops and with a lower learning rate."""

    epochs: Annotated[int, Field(ge=0)] = Field(0, description="0: no second stage")
    crop_hw: SizeHW | None = Field(None, description="px; at most the largest image; null: the whole image")
    batch_size: PositiveInt | None = Field(None, description="null: as in the first stage")
    samples_per_epoch: PositiveInt | None = Field(None, description="null: one per image")
    rate_share: Share = Field(0.1, description="learning rates, relative to the first stage")


class TrainingConfig(Frozen):
    """Duration, batches, precision, and which weights to keep."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = Field(16, description="crops per step and process")
    accumulation: PositiveInt = Field(1, description="steps per weight update")
    fit_memory: bool = Field(False, description="reduce the batch size, and accumulate more, until it fits in memory")
    max_minutes: PositiveFloat | None = Field(None, description="time budget: as many epochs as fit")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    validate_every: PositiveInt = Field(1, description="validate every n epochs, and after the last")
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the moving average of the weights, per step and process; 0: off"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="best: weights with the best validation score; last: the final weights (averaged if ema_decay > 0)",
    )
    average_best: PositiveInt = Field(1, description="with keep: best, also try the average of this many best epochs")
    threshold_folds: Annotated[int, Field(ge=0)] = Field(
        0, description="with fold: null, first train this many folds to choose the thresholds"
    )
    second_stage: SecondStageConfig = SecondStageConfig()
    trackers: tuple[Literal["tensorboard"], ...] = ("tensorboard",)


class InferenceConfig(Frozen):
    """How the trained model is applied to an image."""

    tile_hw: SizeHW = Field((1024, 2048), description="larger images are split into overlapping tiles of this size")
    tile_overlap_px: Annotated[int, Field(ge=0)] = 128
    tta: Literal["none", "flips", "turns"] = Field(
        "none", description="average 4 mirrored views (flips), or 8 with rotations if the image is square (turns)"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.tile_overlap_px >= min(self.tile_hw):
            raise ValueError("tile_overlap_px must be smaller than both sides of tile_hw")
        return self


class Recipe(Frozen):
    """All settings of `train` except the data folder and the device."""

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
    """A copy of the recipe with new values in one section. The values are not validated."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name -> file, sorted by name."""
    package = Path(__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: no such recipe, not YAML, or invalid keys or values. The message lists all invalid ones.
    """
    source, content = _read_recipe(name_or_path)
    return _checked(content, overrides, source)


def change_recipe(recipe: Recipe, overrides: Sequence[str], source: str) -> Recipe:
    """The recipe with `key=value` overrides; `source` names it in messages. Raises ConfigError as `load_recipe`."""
    return _checked(recipe.model_dump(mode="json"), overrides, source)


def dump_recipe(recipe: Recipe, why: Sequence[str] = ()) -> str:
    """The recipe as YAML, with every key. The sentences `why` come first, each as a comment."""
    import yaml

    comments = "".join(f"# {' '.join(sentence.split())}\n" for sentence in why)
    return comments + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _checked(content: dict[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    for override in overrides:
        apply_override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(f"{' with '.join([source, *overrides])}: {problems}") from None


def _read_recipe(name_or_path: str) -> tuple[str, dict[str, Any]]:
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.exists():
        close = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{name_or_path}: no such file, nor a shipped recipe ({', '.join(shipped)}).{hint}")
    try:
        content = parse_yaml(read_text(path, "expected a YAML text file"))
    except DataError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' pairs at the top, found a {type(content).__name__}.")
    return str(path), content


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one key of a parsed recipe from `key=value`. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{override}: expected key=value, for example training.epochs=5")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError(f"{override}: the value is not valid YAML; quote it if it has special signs") from None
    *parents, leaf = key.strip().split(".")
    section = content
    for parent in parents:
        if section.get(parent) is None:  # absent, or present without keys
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
    section: Any = Recipe
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
