"""ONNX Runtime's own answer: reads the inputs from a .npz file and writes the outputs to another.

    python reference.py model.onnx inputs.npz outputs.npz

A process of its own, because the load generator itself must not hold ONNX Runtime.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx_peer import OnnxModel


def main() -> None:
    path, given, found = sys.argv[1:]
    model = OnnxModel(path, threads=1)
    with np.load(given) as inputs:
        outputs = model.run(dict(inputs))
    # By position: a tensor's name may hold a "/", which an archive would take for a folder.
    names = np.array(list(outputs))
    np.savez(found, names=names, **{f"output_{i}": a for i, a in enumerate(outputs.values())})


if __name__ == "__main__":
    main()
