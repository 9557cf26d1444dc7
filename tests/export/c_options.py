"""Options of compilers that may reorder or approximate arithmetic, which the networks in C refuse or undo."""

# Options that may reorder or approximate: the file refuses them, or its numbers and its refusals of NaN stay what they are.
FLAGS = {
    "gcc": [
        "-fassociative-math",
        "-fassociative-math -fno-signed-zeros -fno-trapping-math",
        "-freciprocal-math",
        "-fno-signed-zeros -fno-trapping-math",
        "-funsafe-math-optimizations",
        "-ffinite-math-only",
        "-ffast-math",
        "-Ofast",
        "-mrecip",
        "-frounding-math",
        "-fexcess-precision=fast",
        "-fsingle-precision-constant",
    ],
    "clang": [
        "-funsafe-math-optimizations",
        "-fassociative-math -fno-signed-zeros -fno-trapping-math",
        "-freciprocal-math",
        "-fno-honor-nans",
        "-fno-honor-infinities",
        "-ffinite-math-only",
        "-ffast-math",
        "-ffp-model=fast",
        "-Ofast",
        "-fapprox-func",
        "-fno-signed-zeros",
        "-mrecip",
    ],
}
