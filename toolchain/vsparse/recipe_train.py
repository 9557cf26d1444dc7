"""The recipe's `[train]` section: objective, terms, sparsifier, budget, optimiser and loop; and the tables of what can be named there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from vsparse.errors import nearest
from vsparse.schema import ExactNumber, Section

Initialisation = Literal["interval", "he", "glorot", "module"]

# Each objective by its name, as module:Class of stages/train/objectives. The class says the rest: whether it is certified, whether it
# reads the radius, by what its epochs are validated, its sentence in the report. To add one, write its file and put its line here.
OBJECTIVES = {
    "natural": "natural:NaturalObjective",
    "fgsm": "fgsm:FgsmObjective",
    "pgd": "pgd:PgdObjective",
    "trades": "trades:TradesObjective",
    "ibp": "ibp:IntervalObjective",
    "crown-ibp": "crown_ibp:CrownIntervalObjective",
    "mixtrain": "mixtrain:MixTrainObjective",
    "sabr": "sabr:SmallBoxObjective",
    "taps": "taps:LatentAttackObjective",
    "staps": "taps:SmallBoxLatentAttackObjective",
    "cc-ibp": "cc_ibp:CombinedMarginsObjective",
    "mtl-ibp": "mtl_ibp:CombinedLossesObjective",
    "exp-ibp": "exp_ibp:GeometricLossesObjective",
    "smoothing": "smoothing:SmoothingObjective",
    "regression": "regression:RegressionObjective",
}
# The objective of numbers; all others are of classes.
REGRESSION = "regression"
# Each sparsifier by its name, as module:Class of stages/train/sparsifiers; here, too, the class says the rest.
METHODS = {
    "gradual": "gradual:Gradual",
    "vericompress": "vericompress:VeriCompress",
    "sparsevlr": "sparsevlr:SparseVLR",
    "rigl": "rigl:RigL",
    "set": "set_:Set",
    "magnitude": "magnitude:Magnitude",
    "snip": "snip:Snip",
    "lottery": "lottery:Lottery",
    "hydra": "hydra:Hydra",
}
_OWN_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class NameOrClass:
    """Checks a string: one of `names`, or `package.module:Class` of the user's own, which is imported only when a network is trained."""

    names: Collection[str]

    def __call__(self, value: str) -> str:
        """Returns the string; raises ValueError for anything else."""
        if value in self.names or _OWN_CLASS.fullmatch(value):
            return value
        known = ", ".join(self.names)
        raise ValueError(f'there is no "{value}"{nearest(value, list(self.names))}; there are {known}, or package.module:Class of your own')


def _device_name(value: str) -> str:
    if not re.fullmatch(r"cpu|auto|cuda(:[0-9]{1,3})?", value):
        raise ValueError(f'there is no device "{value}"; there are cpu, cuda, cuda:N (such as cuda:1) and auto')
    return value


DeviceName = Annotated[str, AfterValidator(_device_name)]
ObjectiveName = Annotated[str, AfterValidator(NameOrClass(tuple(OBJECTIVES)))]
MethodName = Annotated[str, AfterValidator(NameOrClass(tuple(METHODS)))]


class LossSpec(Section):
    """What the objectives take beside the radius; each objective reads its own keys (docs/training.md)."""

    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="mtl-ibp, cc-ibp, exp-ibp: weight of the interval part; mixtrain: of the robust part; taps: of its gradient",
    )
    shrink: float = Field(0.4, gt=0, le=1, description="sabr, staps: size of the propagated box, as a fraction of epsilon")
    beta: float = Field(6.0, ge=0, description="trades, smoothing: weight of the divergence term")
    relu_shrink: float = Field(
        1.0, gt=0, le=1, description="sabr, staps: factor of the upper end of boxes that cross 0 before a ReLU; 1: off"
    )
    sigma: float = Field(0.25, gt=0, description="smoothing: standard deviation of the noise")
    mix: float = Field(0.5, gt=0, le=1, description="mixtrain: fraction of a batch that gets the robust loss")
    mix_probability: float = Field(1.0, gt=0, le=1, description="mixtrain: probability that a batch gets the robust loss at all")
    mix_weight: float = Field(
        0.0, ge=0, description="mixtrain: weight of the robust loss at the start, beside the whole clean loss; 0: alpha and 1 − alpha"
    )
    mix_growth: float = Field(1.0, ge=1, le=10, description="mixtrain: factor of mix_weight from one epoch of a phase to the next")
    block: int = Field(1, ge=1, description="taps, staps: how many ReLUs from the output the attacked part begins")
    attack_steps: int = Field(8, ge=1, le=1000, description="steps of projected gradient ascent")
    attack_step: float = Field(0.5, gt=0, le=4, description="length of a step, as a fraction of epsilon")
    attack_radius: float = Field(1.0, gt=0, le=4, description="mtl-ibp, cc-ibp, exp-ibp: radius of the attack, as a fraction of epsilon")
    attack_restarts: int = Field(1, ge=1, le=100, description="random starts, of which the worst counts")
    attack_amp: bool = Field(False, description="bfloat16 in the passes that look for an attack; losses and bounds stay float32")
    random_start: bool = Field(False, description="fgsm: one step of 1.25 epsilon from a random point, not of epsilon from the input")

    @model_validator(mode="after")
    def _growing_weight(self) -> LossSpec:
        if self.mix_growth != 1 and self.mix_weight == 0:
            raise ValueError("mix_growth is the factor of mix_weight, which is 0; set mix_weight, such as to 0.1, or leave mix_growth out")
        return self


class Terms(Section):
    """Further terms of the loss, each off at 0."""

    nrs: float = Field(0.0, ge=0, description="weight of the loss on unstable neurons (NRSLoss, Li et al., arXiv 2206.07311)")
    nrs_scale: float = Field(
        1.0,
        gt=0,
        description="γ of NRSLoss: bounds whose product is far below −γ² no longer count; times the scale of a batch norm before the ReLU",
    )
    weight_perturbation: float = Field(0.0, ge=0, lt=1, description="relative size of the adversarial weight perturbation")
    weight_noise: float = Field(0.0, ge=0, description="standard deviation of the noise on weights over which the loss is averaged")
    weight_noise_samples: int = Field(1, ge=1, le=1024, description="draws of that noise in a step, each of which costs what a step does")
    certainty: float = Field(
        0.0,
        ge=0,
        description="weight of adversarial certainty, the standard deviation of attacked logits, lowered by a step of its own before each "
        "step (EDAC)",
    )
    fake_quantisation: bool = Field(False, description="train with weights and activations rounded as the int8 file rounds them")

    @model_validator(mode="after")
    def _noise(self) -> Terms:
        if self.weight_noise_samples > 1 and self.weight_noise == 0:
            raise ValueError("weight_noise_samples counts draws of weight_noise, which is 0; set weight_noise, or leave the samples out")
        if self.weight_noise > 0 and self.weight_perturbation > 0:
            raise ValueError("weight_noise and weight_perturbation both say at which weights the loss is taken; set one of them to 0")
        return self


# network.architecture: the one that the ONNX file of train.start holds.
OF_START = "start"


class Sparse(Section):
    """How weights are removed: method, granularity, and how the budget is spread over the layers."""

    method: MethodName = Field("vericompress", description="see docs/training.md")
    granularity: Literal["channel", "element", "block", "2:4"] = Field("channel", description="what is removed as one")
    block: tuple[int, int] = Field((8, 1), description="block: outputs × inputs")
    allocation: Literal["erdos-renyi-kernel", "uniform", "global", "lamp"] = Field(
        "erdos-renyi-kernel", description="how the sparsity is spread over layers; global, lamp: by importance"
    )
    conv_share: float = Field(
        0.5, gt=0, le=2, description="conv and last layers lose the sparsity that the allocation gives them times this factor"
    )
    thickening_length: int = Field(1, ge=1, description="dynamic methods: epochs between two choices of what is active")
    freeze: float = Field(0.6, gt=0, le=1, description="dynamic methods: fraction of the epochs after which the mask no longer changes")
    importance: Literal["magnitude", "sensitivity"] = Field(
        "magnitude", description="gradual: |w|, or |w| · the root mean square of the loss's gradient to it (Adam's second moment)"
    )
    reach: float = Field(1.0, gt=0, le=1, description="gradual: fraction of the epochs before the freeze after which the density is final")
    drop: float = Field(0.3, gt=0, lt=1, description="set, rigl: fraction of active weights replaced at first, falling to 0 by a cosine")
    rounds: int = Field(1, ge=1, le=100, description="magnitude, lottery: how often a part is pruned and the rest trained on")
    rewind: Literal["initial", "early", "random", "continue"] = Field(
        "initial", description="lottery: the weights that a round starts from (random: the last one); magnitude always continues"
    )
    rewind_epoch: int = Field(1, ge=1, description='lottery: the epoch whose weights "early" goes back to')
    prune_epochs: int = Field(4, ge=1, description="hydra: epochs in which the scores are trained")
    prune_learning_rate: float = Field(0.1, gt=0, le=10, description="hydra: of the scores")
    finetune_epochs: int = Field(10, ge=0, description="magnitude, hydra: epochs after each pruning; lottery: 0 means train.epochs")
    finetune_learning_rate: float = Field(
        0.0, ge=0, le=10, description="magnitude, hydra: of fine-tuning; 0: a tenth of train.learning_rate"
    )

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, content: Any) -> Any:
        """Reads the first names of the granularities."""
        if isinstance(content, dict) and content.get("granularity") in ("structured", "unstructured"):
            return {**content, "granularity": "channel" if content["granularity"] == "structured" else "element"}
        return content

    @model_validator(mode="after")
    def _fits(self) -> Sparse:
        if min(self.block) < 1:
            raise ValueError("block must be two positive numbers, outputs and inputs")
        return self


class Train(Section):
    """Certified training: what is minimised, what is removed, and how it is optimised."""

    objective: ObjectiveName = Field("ibp", description="what is minimised (docs/training.md)")
    engine: Literal["vsparse", "auto_lirpa"] = Field("vsparse", description="whose bounds crown-ibp trains on")
    loss: LossSpec = LossSpec()
    terms: Terms = Terms()
    epsilon: ExactNumber = Field(
        "", description="radius trained at; empty: of the l∞ ball that the property's region lies in", validate_default=False
    )
    sparsity: float = Field(0.8, ge=0, lt=1, description="fraction of the budget's measure to remove; 0 trains dense")
    budget: Literal["weights", "macs", "bytes", "latency"] = Field(
        "weights", description="what sparsity is a fraction of; latency: by the roofline of macs_per_byte (docs/training.md)"
    )
    macs_per_byte: float = Field(8.0, gt=0, description="latency budget: multiply-adds that take as long as reading one byte of weights")
    parameter_budget: int = Field(0, ge=0, description="weights to keep, instead of sparsity; 0: unused")
    sparse: Sparse = Sparse()
    epochs: int = Field(
        40,
        ge=0,
        le=100_000,
        description="passes over the training split, without pruning and fine-tuning; left out: enough steps (docs/training.md); "
        "0: the network of start as it is",
    )
    batch_size: int = Field(
        128, ge=1, le=65_536, description="samples of one step; left out: fewer where the samples are few (docs/training.md)"
    )
    accumulate: int = Field(
        1, ge=1, le=1024, description="parts in which a batch is computed, one after the other, for memory; batch norm then sees parts"
    )
    batch_norm: Literal["batch", "population"] = Field(
        "batch",
        description="statistics of attacks and bounds; batch: the clean batch's; population: the running ones, computed over the training "
        "split after every epoch",
    )
    optimizer: Literal["adam", "sgd", "muon"] = Field(
        "adam", description="sgd: with momentum; muon: steps of matrices made orthogonal, Adam's for the rest"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="sgd: Nesterov's momentum")
    weight_decay: float = Field(
        0.0, ge=0, description="l2, added to the gradient of weights (muon: weights shrink by it); not of biases and batch norm"
    )
    learning_rate: float = Field(5e-4, gt=0, le=10, description="at the start")
    rate_schedule: Literal["step", "cosine"] = Field("step", description="step: times decay at each milestone; cosine: to 0")
    milestones: tuple[float, ...] = Field((0.75, 0.9), description="fractions of the epochs after which the rate is multiplied by decay")
    decay: float = Field(0.2, gt=0, le=1, description="factor of the rate at each milestone")
    gradient_clip: float = Field(10.0, gt=0, description="largest l2 norm of a gradient")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of the epochs at epsilon 0")
    ramp: float = Field(0.3, ge=0, lt=1, description="fraction of the epochs over which epsilon grows")
    ramp_shape: Literal["smoothed", "linear"] = Field("smoothed", description="how epsilon grows; smoothed: slowly at first")
    kappa_start: float = Field(1.0, ge=0, le=1, description="weight of the clean loss at the start of the ramp")
    kappa_end: float = Field(0.0, ge=0, le=1, description="weight of the clean loss at its end")
    initialisation: Literal["auto", "interval", "he", "glorot", "module"] = Field(
        "auto",
        description="initial weights; auto: those of start, else interval (Shi et al. 2021) for certified objectives, he for the others; "
        "module: as the network's code leaves them",
    )
    start: str = Field(
        "",
        exclude_if=("").__eq__,
        description="trained network to start from: ONNX, safetensors, or a state_dict of torch.save; relative to the recipe's folder "
        "(with --set: the current one)",
    )
    start_sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", exclude_if=("").__eq__, description="SHA-256 of start's file, which a build fills in and compares"
    )
    regulariser: float = Field(0.5, ge=0, description="weight of the warm-up regulariser of Shi et al. 2021; 0: off")
    l1: float = Field(0.0, ge=0, description="weight of the l1 norm of all weights")
    average: Literal["none", "ema", "swa"] = Field("none", description="evaluate and keep an average of the weights")
    average_decay: float = Field(0.999, gt=0, lt=1, description="ema: fraction of the old average that stays with each step")
    average_from: float = Field(0.75, ge=0, lt=1, description="fraction of the epochs after which averaging begins")
    early_stop: int = Field(0, ge=0, description="end after this many epochs without a better certified validation accuracy; 0: never")
    amp: bool = Field(False, description="bfloat16 in the passes of objectives that are not certified; bounds stay float32")
    processes: int = Field(
        1, ge=1, le=64, description="processes that share every batch (torchrun; gloo or NCCL); batch norm then sees parts"
    )
    device: DeviceName = Field("cpu", description="cpu, cuda, cuda:N, or auto: the first CUDA device where there is one, else cpu")
    draws: Literal["auto", "torch", "counter"] = Field(
        "auto", description="random numbers of attacks, noise and augmentation; counter: the same on any device; auto: torch on cpu"
    )
    baseline: bool = Field(True, description="also train the dense parent, side by side, for comparison")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, batches, masks, splits and attacks")

    @property
    def is_sparse(self) -> bool:
        """Whether anything is to be removed."""
        return self.sparsity > 0 or self.parameter_budget > 0

    @model_validator(mode="before")
    @classmethod
    def _as_it_is(cls, content: Any) -> Any:
        """Removes nothing from a network that is taken as it is, where the recipe leaves train.sparsity out."""
        if isinstance(content, dict) and content.get("epochs") == 0 and content.get("epochs") is not False and "sparsity" not in content:
            return {**content, "sparsity": 0.0}
        return content

    @model_validator(mode="after")
    def _combinations(self) -> Train:
        if not self.epochs and not self.start:
            raise ValueError("train.epochs = 0 takes the network of train.start as it is; name its file, or raise epochs to train one")
        if not self.epochs and self.is_sparse:
            raise ValueError(
                "train.epochs = 0 trains nothing, and train.sparsity removes weights while training; raise epochs, or leave sparsity out "
                "(`vsparse compress MODEL --sparsity` prunes without training)"
            )
        if self.parameter_budget and self.budget != "weights":
            raise ValueError('train.parameter_budget counts weights; leave train.budget at "weights" with it')
        if self.start and self.initialisation not in ("auto", "module"):
            raise ValueError(
                f'train.start gives the initial weights, and train.initialisation = "{self.initialisation}" would draw them anew; leave '
                "one of them out"
            )
        if "\0" in self.start or (self.start_sha256 and not self.start):
            raise ValueError("train.start must be the path of a file, and train.start_sha256 is that file's; correct train.start")
        if self.warmup + self.ramp >= 1:
            raise ValueError("train.warmup + train.ramp must leave epochs at full epsilon (less than 1 together)")
        if self.batch_size < self.processes:
            raise ValueError(
                f"train.batch_size = {self.batch_size} cannot be shared by train.processes = {self.processes}; raise batch_size"
            )
        if self.batch_size < self.processes * self.accumulate:
            raise ValueError(
                f"train.batch_size = {self.batch_size} has no train.accumulate = {self.accumulate} parts for each of "
                f"{self.processes} processes; lower accumulate"
            )
        if self.accumulate > 1 and self.terms.weight_perturbation > 0:
            raise ValueError(
                "train.terms.weight_perturbation moves the weights by the gradient of a whole batch, and train.accumulate computes it in "
                "parts; set accumulate to 1"
            )
        moved = self.terms.fake_quantisation or self.terms.weight_perturbation > 0 or self.terms.weight_noise > 0
        if self.engine == "auto_lirpa" and moved:
            raise ValueError(
                "train.terms.fake_quantisation as well as weight_perturbation and weight_noise change the weights of a step, and "
                'auto_LiRPA bounds its own; set train.engine = "vsparse"'
            )
        if self.engine == "auto_lirpa" and self.device != "cpu":
            raise ValueError(
                f'train.engine = "auto_lirpa" is for train.device = "cpu", not "{self.device}"; set train.engine = "vsparse", whose bounds '
                "train on any device"
            )
        if self.draws == "torch" and self.device != "cpu":
            raise ValueError(
                f'train.draws = "torch" draws on the processor, and train.device is "{self.device}"; set train.draws = "counter" or "auto"'
            )
        if self.terms.certainty > 0 and (self.objective == REGRESSION or self.engine == "auto_lirpa" or self.terms.fake_quantisation):
            raise ValueError(
                "train.terms.certainty is about the logits of classes as float32 computes them with our own weights: not of regression, "
                'not of train.engine = "auto_lirpa", not with terms.fake_quantisation; set certainty to 0'
            )
        if self.processes > 1 and ":" in self.device:
            raise ValueError(
                f'train.processes = {self.processes} would share the one card of train.device = "{self.device}", and each needs its own; '
                'set train.device = "cuda"'
            )
        if self.terms.fake_quantisation and self.amp:
            raise ValueError("train.terms.fake_quantisation rounds in float32, on grids that each batch moves; set train.amp to false")
        return self


def beside(content: dict[str, Any], recipe: Path) -> dict[str, Any]:
    """Returns a recipe's content with train.start, where it is relative, as a path from the folder of the recipe's file."""
    train = content.get("train")
    start = train.get("start") if isinstance(train, dict) else None
    if not isinstance(train, dict) or not isinstance(start, str) or not start:
        return content
    return {**content, "train": {**train, "start": str(recipe.absolute().parent / start)}}
