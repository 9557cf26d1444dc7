"""The rows of the training tables: a recipe and what differs from it, for each seed.

`DECLARED` has all rows; `TABLES` those that can run, whose recipe is shipped. Widths of small dense networks are from widths.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsparse.recipe import load_recipe
from vsparse.shipped import shipped_names


@dataclass(frozen=True)
class Row:
    """One row of a table.

    `samples` test samples are measured, 0 means all. `metric` says what beside clean accuracy: certified accuracy of the exported file,
    accuracy under an attack, certified l2 accuracy of the smoothed classifier, or (rounds) accuracy under FGSM and PGD after every round
    of pruning. `masks_of` names a row of the same table, measured first, whose masks the rounds of this one take over. `sparsity`,
    `label` and `method` are for the tables and plots.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    samples: int = 0
    metric: Literal["certified", "attack", "smoothing", "rounds"] = "certified"
    masks_of: str = ""
    sparsity: float = 0.0
    method: str = ""


SEEDS = (0, 1, 2)
DENSITIES = (0.9, 0.95, 0.99)
# Of `methods`: at 90 % there are the baselines and HYDRA, and eleven more trainings would take about half an hour of two cores.
METHODS_DENSITIES = (0.95, 0.99)
MNIST, MNIST_WIDE, GTSRB = "best-mnist", "best-mnist-0.3", "best-gtsrb"
# What makes the best recipe sparse in single weights, or in channels; to be set with the recipe.
ELEMENT = ("train.sparse.granularity=element",)
# Other methods than the recipe's choose by magnitude, which compares over layers when these are scaled (LAMP).
MAGNITUDE = ("train.sparse.importance=magnitude",)
LAYERS = ("train.sparse.allocation=lamp",)
CHANNEL = ("train.sparse.granularity=channel", "train.budget=macs", "train.sparse.allocation=uniform", "train.sparse.conv_share=1.0")
# Epochs of "ours" that take as long as the 12 minutes of VeriCompress' own code.
OURS_IN_12_MINUTES = 30
# Test samples certified of each row of `methods`, the first ones; the headline and the baselines certify all.
METHODS_SAMPLES = 2000
# Epochs of the rows of `methods`, all phases together, and of `objectives`: 37 trainings in the hours that there are.
COMPARED_EPOCHS = 16
CIFAR, CIFAR_EPOCHS, CIFAR_SAMPLES = "cifar10-small", 24, 300
# Of best-gtsrb: how much brighter or darker all pixels of an image may be.
BRIGHTNESS = "1/255"


def percent(sparsity: float) -> str:
    """Returns 90 for 0.9."""
    return f"{100 * sparsity:g}"


def best_epochs() -> int:
    """Returns the epochs of the best MNIST recipe; 40 as long as there is none."""
    return load_recipe(MNIST).train.epochs if MNIST in shipped_names("models") else 40


def parts(total: int, shares: tuple[float, ...]) -> list[int]:
    """Returns `total` epochs split by shares, each at least 1, the first taking what rounding leaves."""
    rest = [max(1, round(total * share)) for share in shares[1:]]
    return [max(1, total - sum(rest)), *rest]


# Lottery tickets: three arms on two attacks, the smaller cost first, so that two processes are both busy.


def lottery() -> list[Row]:
    rows = []
    for arm in ("initial", "continue", "random"):
        for attack in ("fgsm", "pgd"):
            settings = (f"train.sparse.rewind={arm}",)
            masks_of = f"{attack}-initial" if arm == "random" else ""
            rows.append(Row(f"{attack}-{arm}", f"lottery-{attack}-mnist-small", settings, metric="rounds", masks_of=masks_of, method=arm))
    return rows


# HYDRA against least-weight-magnitude pruning (LWM) on its four objectives.


def hydra() -> list[Row]:
    rows = []
    for objective, metric in (("crown-ibp", "certified"), ("mixtrain", "certified"), ("pgd", "attack"), ("smoothing", "smoothing")):
        recipe = f"hydra-{objective}-mnist"
        spec = load_recipe(recipe).train.sparse
        longer = spec.prune_epochs + spec.finetune_epochs
        # Noise leaves [0, 1], the range over which the exact reductions are exact.
        common = ("compress.exact=false",) if objective == "smoothing" else ()
        samples = {"certified": 0, "attack": 1000, "smoothing": 500}[metric]
        rows.append(Row(f"{objective}-dense", recipe, (*common, "train.sparsity=0"), samples=samples, metric=metric, method="dense"))  # type: ignore[arg-type]
        for sparsity in DENSITIES:
            for method, more in (
                ("hydra", ()),
                # Magnitude pruning learns no scores, and gets those epochs for fine-tuning.
                ("magnitude", ("train.sparse.method=magnitude", "train.sparse.rounds=1", f"train.sparse.finetune_epochs={longer}")),
            ):
                settings = (*common, f"train.sparsity={sparsity}", *more)
                name = f"{objective}-{method}-{percent(sparsity)}"
                rows.append(Row(name, recipe, settings, samples=samples, metric=metric, sparsity=sparsity, method=method))  # type: ignore[arg-type]
    return rows


# The research code's own comparison: MNIST at ε 0.1, 30 epochs, 12 minutes on one thread, certified by interval bounds.


def vericompress() -> list[Row]:
    published = ("train.sparsity=0.787",)
    return [
        Row("dense", "vericompress-mnist-small", ("train.sparsity=0",), method="dense"),
        Row("vericompress-78.7", "vericompress-mnist-small", published, sparsity=0.787, method="vericompress"),
        Row("sparsevlr-78.7", "sparsevlr-mnist-small", published, sparsity=0.787, method="sparsevlr"),
        Row("verisparse-78.7", "verisparse-mnist-small", published, sparsity=0.787, method="verisparse"),
        Row("ours-78.7", MNIST, (*ELEMENT, *published, f"train.epochs={OURS_IN_12_MINUTES}"), sparsity=0.787, method="ours"),
        Row(
            "ours-ibp-78.7",
            MNIST,
            (*ELEMENT, *published, "train.objective=ibp", f"train.epochs={OURS_IN_12_MINUTES}"),
            sparsity=0.787,
            method="ours, trained on interval bounds",
        ),
        Row(
            "ours-channels-78.7",
            MNIST,
            ("train.sparse.granularity=channel", *published, f"train.epochs={OURS_IN_12_MINUTES}"),
            sparsity=0.787,
            method="ours, channels",
        ),
    ]


def headline() -> list[Row]:
    rows = [Row("dense", MNIST, ("train.sparsity=0",), SEEDS, method="dense")]
    for sparsity in DENSITIES:
        settings = (*ELEMENT, f"train.sparsity={sparsity}")
        rows.append(Row(f"element-{percent(sparsity)}", MNIST, settings, SEEDS, sparsity=sparsity, method="element"))
    rows.append(Row("channel-half-macs", MNIST, (*CHANNEL, "train.sparsity=0.5"), SEEDS, sparsity=0.5, method="channel"))
    rows.append(Row("dense-0.3", MNIST_WIDE, ("train.sparsity=0",), SEEDS, method="dense"))
    rows.append(Row("element-90-0.3", MNIST_WIDE, (*ELEMENT, "train.sparsity=0.9"), sparsity=0.9, method="element"))
    return rows


# Small dense cnn4s (166,248 weights and 609,384 multiply-adds at width 1) beside the sparse rows of `headline`: as many weights, and no
# fewer multiply-adds (those of nonzero weights), as `widths.py` finds them in the results.
SMALL_DENSE = {
    # what follows element- in the headline: (width by weights, width by multiply-adds), and what the network then has
    "90": (0.3149, 0.4532),  # 16,380 weights for 16,607; 137,797 multiply-adds for 135,090
    "95": (0.225, 0.3438),  # 8,278 for 8,309; 89,226 for 78,727
    "99": (0.095, 0.1563),  # 1,698 for 1,662; 25,248 for 21,289
    "90-0.3": (0.3149, 0.3351),  # of cnn4-clip: 16,464 for 16,650; 96,282 for 96,147
}
HALF_MACS = 0.672  # 297,120 multiply-adds for 290,059, and 76,944 weights


def one_shot(recipe: str, sparsity: float, granularity: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the settings of one-shot magnitude pruning with fine-tuning, in as many epochs as the recipe trains from scratch."""
    dense, tuning = parts(load_recipe(recipe).train.epochs, (0.65, 0.35))
    return (
        *granularity,
        *MAGNITUDE,
        f"train.sparsity={sparsity}",
        "train.sparse.method=magnitude",
        "train.sparse.rounds=1",
        f"train.epochs={dense}",
        f"train.sparse.finetune_epochs={tuning}",
    )


def baselines() -> list[Row]:
    rows = []
    sparse = {row.name.removeprefix("element-"): row for row in headline()}
    for name, widths in SMALL_DENSE.items():
        recipe, sparsity = sparse[name].recipe, sparse[name].sparsity
        for what, width in zip(("weights", "macs"), widths, strict=True):
            settings = ("train.sparsity=0", f"network.width={width}")
            rows.append(Row(f"small-{what}-{name}", recipe, settings, sparsity=sparsity, method=f"small dense, same {what}"))
        settings = one_shot(recipe, sparsity, (*ELEMENT, *LAYERS))
        rows.append(Row(f"magnitude-{name}", recipe, settings, sparsity=sparsity, method="magnitude"))
    rows.append(Row("small-macs-half", MNIST, ("train.sparsity=0", f"network.width={HALF_MACS}"), method="small dense, same macs"))
    rows.append(Row("magnitude-half-macs", MNIST, one_shot(MNIST, 0.5, CHANNEL), sparsity=0.5, method="magnitude"))
    return rows


# Small dense networks of the multiply-adds of `baselines` trained for as long as the sparse network, and the sparse one for as long as they
# train: epochs whose processor time is that of the other's in the results of the headline and the baselines.
EQUAL_COMPUTE = {
    "90": 42,  # 24 epochs of the sparse network took 455 s, of the small dense one 260 s
    "95": 48,  # 448 s, and 222 s
}
# About half of the sparse network's epochs take what 24 of the small dense one's do; at 90 % the row scratch-12 of `time` is that training.
SHORT_SPARSE = 12


def compute() -> list[Row]:
    sparse = (*ELEMENT, "train.sparsity=0.95", f"train.epochs={SHORT_SPARSE}")
    rows = [Row(f"element-95-{SHORT_SPARSE}", MNIST, sparse, sparsity=0.95, method="element")]
    for name, epochs in EQUAL_COMPUTE.items():
        settings = ("train.sparsity=0", f"network.width={SMALL_DENSE[name][1]}", f"train.epochs={epochs}")
        rows.append(Row(f"small-macs-{name}-{epochs}", MNIST, settings, sparsity=float(name) / 100, method="small dense, same macs"))
    return rows


def staged(method: str) -> tuple[str, ...]:
    """Returns the settings by which a method spends COMPARED_EPOCHS in all."""
    total = COMPARED_EPOCHS
    name = method.partition("-")[0]
    chosen = f"train.sparse.method={name}"
    if method == "magnitude-one-shot":
        dense, tuning = parts(total, (0.65, 0.35))
        return (chosen, f"train.epochs={dense}", "train.sparse.rounds=1", f"train.sparse.finetune_epochs={tuning}")
    if method == "magnitude-iterative":
        rounds = 4
        dense, tuning = parts(total, (0.6, 0.4 / rounds))
        return (
            chosen,
            f"train.epochs={total - rounds * tuning}",
            f"train.sparse.rounds={rounds}",
            f"train.sparse.finetune_epochs={tuning}",
        )
    if method == "lottery":
        # The ticket is found in two rounds, and trained for as long as the first network.
        epochs = max(1, total // 3)
        return (chosen, f"train.epochs={epochs}", "train.sparse.rounds=2", "train.sparse.finetune_epochs=0", "train.sparse.rewind=initial")
    if method == "hydra":
        dense, scores, tuning = parts(total, (0.6, 0.1, 0.3))
        return (
            chosen,
            f"train.epochs={dense}",
            f"train.sparse.prune_epochs={scores}",
            "train.sparse.prune_learning_rate=1e-3",
            f"train.sparse.finetune_epochs={tuning}",
        )
    return (chosen, f"train.epochs={total}")


METHODS = (
    "gradual",
    "gradual-magnitude",
    "vericompress",
    "sparsevlr",
    "set",
    "rigl",
    "snip",
    "magnitude-one-shot",
    "magnitude-iterative",
    "lottery",
    "hydra",
)


def methods() -> list[Row]:
    return [
        Row(
            f"{method}-{percent(sparsity)}",
            MNIST,
            (*ELEMENT, f"train.sparsity={sparsity}", *(() if method == "gradual" else (*MAGNITUDE, *LAYERS)), *staged(method)),
            samples=METHODS_SAMPLES,
            sparsity=sparsity,
            method=method,
        )
        for method in METHODS
        for sparsity in METHODS_DENSITIES
    ]


# What each objective takes beside the radius; published values for MNIST 0.1 where there are some (De Palma et al., Mao et al.).
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "natural": (),
    "fgsm": ("train.kappa_start=0.5", "train.kappa_end=0.5"),
    "pgd": (),
    "trades": ("train.loss.beta=6",),
    "smoothing": ("train.loss.beta=6",),
    "ibp": (),
    "crown-ibp": (),
    "mixtrain": ("train.loss.alpha=0.8", "train.loss.mix=0.5"),
    "sabr": ("train.loss.shrink=0.4",),
    "taps": ("train.loss.alpha=0.8333",),
    "staps": ("train.loss.alpha=0.8333", "train.loss.shrink=0.4"),
    "cc-ibp": ("train.loss.alpha=0.1",),
    "mtl-ibp": ("train.loss.alpha=0.02",),
}


# Objectives that bound nothing have no use for a term about bounds.
UNBOUNDED = ("natural", "fgsm", "pgd", "trades", "smoothing")
# Does what a dense network certifies without training bounds survive sparsity?
SPARSE_TOO = ("trades", "mtl-ibp")


def objectives() -> list[Row]:
    # Networks trained on no bounds keep branch and bound busy for hours: fewer samples and domains, the same for all rows.
    common = ("verify.branch_domains=64", f"train.epochs={COMPARED_EPOCHS}")
    own = load_recipe(MNIST).train.objective if MNIST in shipped_names("models") else ""
    rows = []
    for name, settings in OBJECTIVES.items():
        attack = ("train.loss.attack_steps=4", "train.loss.attack_step=0.5")
        bounds = ("train.regulariser=0",) if name in UNBOUNDED else ()
        # The recipe's own objective keeps the recipe's settings.
        chosen = () if name == own else (f"train.objective={name}", *attack, *bounds, *settings)
        rows.append(Row(name, MNIST, ("train.sparsity=0", *common, *chosen), samples=1000, method=name))
        if name in SPARSE_TOO:
            sparse = (*ELEMENT, "train.sparsity=0.95", *common, *chosen)
            rows.append(Row(f"{name}-95", MNIST, sparse, samples=1000, sparsity=0.95, method=name))
    return rows


# Of the multiply-adds, what goes with three quarters of the channels: cnn4 at width 0.25 has 47,682 of 609,384.
QUARTER = 0.9217
# From scratch in fewer epochs than the recipe's: how soon is a network as good as HYDRA's?
SHORTER = (16, 12, 8)


def time() -> list[Row]:
    total = best_epochs()

    def scratch(epochs: int) -> Row:
        settings = (*ELEMENT, "train.sparsity=0.9", *([f"train.epochs={epochs}"] if epochs != total else []))
        name = "scratch" if epochs == total else f"scratch-{epochs}"
        return Row(name, MNIST, settings, sparsity=0.9, method="from scratch")

    def hydra(dense: int) -> Row:
        scores = max(1, round(dense / 5))  # the published 100 : 20 : 100
        settings = (
            *ELEMENT,
            "train.sparsity=0.9",
            *MAGNITUDE,
            *LAYERS,
            "train.sparse.method=hydra",
            f"train.sparse.prune_epochs={scores}",
            "train.sparse.prune_learning_rate=1e-3",
            f"train.sparse.finetune_epochs={dense}",
            *([f"train.epochs={dense}"] if dense != total else []),
        )
        name = "hydra" if dense == total else f"hydra-{2 * dense + scores}"
        return Row(name, MNIST, settings, sparsity=0.9, method="dense + HYDRA + fine-tuning")

    return [
        *(scratch(epochs) for epochs in (total, *SHORTER)),
        *(hydra(epochs) for epochs in (total, total // 2)),
        Row("channel-quarter", MNIST, (*CHANNEL, f"train.sparsity={QUARTER}"), sparsity=QUARTER, method="a quarter of the channels"),
    ]


def gtsrb() -> list[Row]:
    return [
        Row(
            f"{name}-{radius}",
            GTSRB,
            (f'property.epsilon="{radius}/255"', f'property.brightness="{BRIGHTNESS}"', f'train.epsilon="{trained}"', *settings),
            sparsity=sparsity,
            method=name,
        )
        # Trained at a quarter more than radius and brightness together.
        for radius, trained in ((1, "0.01"), (2, "0.0147"))
        for name, sparsity, settings in (
            ("dense", 0.0, ("train.sparsity=0",)),
            ("sparse", 0.9, (*ELEMENT, "train.sparsity=0.9")),
        )
    ]


def cifar() -> list[Row]:
    """CIFAR-10 on two cores: half the epochs of the recipe, dense and sparse, and the first test samples."""
    settings = (f"train.epochs={CIFAR_EPOCHS}",)
    return [
        Row("dense", CIFAR, (*settings, "train.sparsity=0"), samples=CIFAR_SAMPLES, method="dense"),
        Row("element-90", CIFAR, (*settings, "train.sparsity=0.9"), samples=CIFAR_SAMPLES, sparsity=0.9, method="ours"),
    ]


def mnist() -> list[Row]:
    """MNIST at radius 0.1 by steps of matrices made orthogonal: the headline's cnn4, and a narrow cnn5 with a little more interval loss."""
    settings = ("train.sparsity=0", "train.optimizer=muon")
    wider = ("network.architecture=cnn5", "network.width=0.375", "train.loss.alpha=0.005")
    return [Row("cnn4", MNIST, settings, method="dense"), Row("cnn5", MNIST, (*settings, *wider), method="dense")]


DECLARED: dict[str, list[Row]] = {
    "lottery": lottery(),
    "hydra": hydra(),
    "vericompress": vericompress(),
    "headline": headline(),
    "baselines": baselines(),
    "compute": compute(),
    "methods": methods(),
    "objectives": objectives(),
    "time": time(),
    "gtsrb": gtsrb(),
    "cifar": cifar(),
    "mnist": mnist(),
}
TABLES = {table: [row for row in rows if row.recipe in shipped_names("models")] for table, rows in DECLARED.items()}
# A quick try of the harness, in no table: every kind of row on the digits, or cut short.
TABLES["smoke"] = [
    Row("digits", "digits", ("train.epochs=5",), samples=50),
    Row("attack", "digits", ("train.epochs=3", "train.objective=pgd", "train.sparsity=0"), samples=50, metric="attack"),
    Row("smoothing", "digits", ("train.epochs=3", "train.objective=smoothing", "train.sparsity=0"), samples=20, metric="smoothing"),
    Row(
        "rounds",
        "lottery-fgsm-mnist-small",
        ("data.name=digits", "data.format=digits", "train.sparse.rounds=2", "train.sparsity=0.4"),
        metric="rounds",
    ),
    Row(
        "rounds-random",
        "lottery-fgsm-mnist-small",
        ("data.name=digits", "data.format=digits", "train.sparse.rounds=2", "train.sparsity=0.4", "train.sparse.rewind=random"),
        metric="rounds",
        masks_of="rounds",
    ),
]
