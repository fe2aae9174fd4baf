"""The formats and what reads them, by name. No TensorFlow."""

from __future__ import annotations

# The runtimes of each format with the module of each, the first choice first.
RUNTIMES = {
    "saved_model": {"tensorflow": "tensorflow", "serving": "tensorflow"},  # all signatures; serving_default alone
    "onnx": {"onnxruntime": "onnxruntime"},
    "onnx_int8": {"onnxruntime": "onnxruntime"},
    "litert": {"litert": "ai_edge_litert", "tensorflow": "tensorflow"},
    "torchvision": {"torchvision": "torchvision", "timm": "timm", "numpy": "numpy"},
    "detectron2": {"numpy": "numpy"},
}
# The file that a format is known by.
FILES = {
    "saved_model": "saved_model.pb",
    "onnx": "model.onnx",
    "onnx_int8": "model.onnx",
    "litert": "model.tflite",
    "torchvision": "model.safetensors",
    "detectron2": "model.pkl",
}
FORMAT_NAMES = tuple(RUNTIMES)
