"""How near the server comes to ONNX Runtime's own limit on a GPU; see README.md."""
