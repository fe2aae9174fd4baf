"""PyTorch's side of `benchmark encoder`: a program of its own, run by a Python that has PyTorch and not TensorFlow.

torchvision's ResNet with the same projection head, `DistributedDataParallel` over Gloo where there are several workers,
tensors as channels_last, SGD with momentum and decay. Its words are one JSON object, `_words` of `encoder.py`. It
prints a line when it is ready; for each number of steps that it reads then, it makes them and prints the seconds that
they took.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from datetime import timedelta


def main() -> None:
    """Reads numbers of steps until there are no more."""
    # Whatever else is printed goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch, torchvision = map(importlib.import_module, ("torch", "torchvision"))  # which this project needs nowhere else

    words = json.loads(sys.argv[1])
    torch.set_num_threads(words["threads"])
    torch.manual_seed(0)
    model = getattr(torchvision.models, words["encoder"])()
    features = model.fc.in_features
    model.fc = torch.nn.Sequential(
        torch.nn.Linear(features, features), torch.nn.ReLU(), torch.nn.Linear(features, words["embedding_size"])
    )
    model = model.to(memory_format=torch.channels_last)
    if words["workers"] > 1:
        address = f"tcp://127.0.0.1:{words['port']}"
        torch.distributed.init_process_group(
            "gloo", address, timedelta(minutes=2), world_size=words["workers"], rank=words["rank"]
        )
        model = torch.nn.parallel.DistributedDataParallel(model)
    if words["compiled"]:
        model = torch.compile(model)
    sgd = {"lr": words["learning_rate"], "momentum": words["momentum"], "weight_decay": words["weight_decay"]}
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    size = words["image_size"]
    # In memory as TensorFlow has them: channels last.
    pixels = torch.randint(0, 256, (words["images"], size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(words[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    gradient = words["gradient"] * torch.randn(words["images"], words["embedding_size"])
    in_bfloat16 = words["precision"] != "float32"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if in_bfloat16 else contextlib.nullcontext():
            embeddings = model((pixels.float() - mean) / std)
        embeddings.float().backward(gradient)
        optimizer.step()

    step()
    print("ready", file=answers)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
