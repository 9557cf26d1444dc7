"""Executes every file of a folder at every optimisation level: numpy and onnxruntime alone, for any processor, emulated ones too.

Usage: python execute.py FOLDER NAME

FOLDER holds NAME.onnx files with their inputs in NAME.npz (`x`); the outputs go to FOLDER/out-NAME.npz, one array for each file and
level, and facts of the machine to FOLDER/out-NAME.json. `processors.py` writes the folder and judges what was executed.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


def main():
    """Runs each file, one thread, one sample at a time and once all samples together."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    outputs = {}
    for file in sorted(folder.glob("*.onnx")):
        x = np.load(file.with_suffix(".npz"))["x"]
        for level, setting in LEVELS.items():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, setting)
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            feed = session.get_inputs()[0]
            each = [session.run(None, {feed.name: x[i : i + 1]})[0] for i in range(len(x))]
            outputs[f"{file.stem}.{level}.alone"] = np.concatenate(each)
            if not isinstance(feed.shape[0], int):
                outputs[f"{file.stem}.{level}.together"] = session.run(None, {feed.name: x})[0]
    np.savez(folder / f"out-{name}.npz", **outputs)
    machine = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    (folder / f"out-{name}.json").write_text(json.dumps(machine))
    print(f"{len(outputs)} executions on {machine}")


if __name__ == "__main__":
    main()
