"""Makes a small ONNX model to try the server with: y = 2 x, for rows of 4 numbers.

    python examples/make_model.py model.onnx

Its first dimension is called "batch", so requests can share a run.
"""

import argparse

import onnx
from onnx import TensorProto, helper


def main(path: str) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    print(f"wrote {path}: y = x + x, FP32 (batch, 4)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the file to write, such as model.onnx")
    main(parser.parse_args().path)
