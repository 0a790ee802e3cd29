"""Loads the libraries of TensorRT that lie beside this file; ``tensorrt_bindings`` imports it first.

Once loaded they are found by their names, so that no LD_LIBRARY_PATH is needed. Installed by deploy/setup/tensorrt.sh as
the package ``tensorrt_libs``, the name that NVIDIA's own wheel has.
"""

import ctypes
from pathlib import Path

for _name in ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"):
    ctypes.CDLL(str(Path(__file__).with_name(_name)))
