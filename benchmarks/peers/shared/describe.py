"""A model's inputs, as JSON on standard output, for servers that do not tell them.

python describe.py model.onnx
"""

from __future__ import annotations

import json
import sys

from onnx_peer import OnnxModel, declared


def main() -> None:
    (path,) = sys.argv[1:]
    print(json.dumps(declared(OnnxModel(path, threads=1).inputs)))


if __name__ == "__main__":
    main()
