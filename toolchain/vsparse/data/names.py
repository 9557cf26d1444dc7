"""Class names and image shapes of the built-in datasets, and the folders in which they are looked for."""

from __future__ import annotations

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The meaning of the 43 official class numbers (Stallkamp et al., Neural Networks 32, 2012).
GTSRB_NAMES = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by lorries",
    "priority at next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "bend left",
    "bend right",
    "double bend",
    "uneven road",
    "slippery road",
    "road narrows",
    "roadworks",
    "traffic lights",
    "pedestrians",
    "children",
    "cyclists",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "ahead or right",
    "ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by lorries",
)

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "digits": DIGIT_NAMES,
    "breast-cancer": ("malignant", "benign"),
    "vibration": ("healthy", "unbalance", "bearing fault", "looseness"),
    "mnist": DIGIT_NAMES,
    "cifar10": CIFAR10_NAMES,
    "gtsrb": GTSRB_NAMES,
}
# [C, H, W] of what these names mean; GTSRB is resized by everyone who prepares it.
SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 8, 8),
    "breast-cancer": (30, 1, 1),
    "vibration": (3, 1, 64),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
# The same of what has no size of its own: how the shipped recipes take it.
USUAL_SHAPES: dict[str, tuple[int, int, int]] = {**SHAPES, "gtsrb": (3, 32, 32)}
FOLDERS: dict[str, tuple[str, ...]] = {
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar10-jpeg"),
    "gtsrb": ("gtsrb", "gtsrb32"),
}
