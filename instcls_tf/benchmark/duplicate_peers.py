"""Other tools that find duplicates, each in an environment of its own, on the same folder of images."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from typing import NamedTuple

from instcls_tf.benchmark.environments import interpreter
from instcls_tf.errors import UserError
from instcls_tf.progress import Progress

# By name: the environment, and a program that prints the pairs that it finds as JSON, `[[name, name], ...]`, last. Its
# words are the folder of images and one to write into. What is compared are the tools' defaults: imagededup's distance
# of 10 bits, and fastdup's 0.96 of a component and 0.9 of a pair.
_IMAGEDEDUP = """
import json, sys
from imagededup import methods
found = getattr(methods, {method!r})(verbose=False).find_duplicates(image_dir=sys.argv[1])
print(json.dumps([[name, other] for name, others in found.items() for other in others]))
"""
_FASTDUP = """
import json, os, sys
os.environ["SENTRY_OPT_OUT"] = "true"
import fastdup
made = fastdup.create(work_dir=sys.argv[2], input_dir=sys.argv[1])
made.run(overwrite=True, print_summary=False)
table = made.similarity()
pairs = table[table["distance"] >= {threshold!r}][["filename_from", "filename_to"]].values.tolist()
print()
print(json.dumps([[os.path.basename(name) for name in pair] for pair in pairs]))
"""
PEERS = {
    "imagededup_phash": ("imagededup", _IMAGEDEDUP.format(method="PHash")),
    "imagededup_dhash": ("imagededup", _IMAGEDEDUP.format(method="DHash")),
    "imagededup_cnn": ("imagededup", _IMAGEDEDUP.format(method="CNN")),
    "fastdup_0.96": ("fastdup", _FASTDUP.format(threshold=0.96)),
    "fastdup_0.9": ("fastdup", _FASTDUP.format(threshold=0.9)),
}


class Told(NamedTuple):
    """What a tool has found, or why not."""

    pairs: set[frozenset[str]]
    seconds: float  # of the whole process, its imports included
    failure: str = ""


def ask(peer: str, folder: str, environments: str, progress: Progress) -> Told:
    """Runs one of `PEERS` on a folder of images.

    Args:
      peer: its name.
      folder: of images, without folders in it.
      environments: holds the environments, which are made if they are not there.
      progress: told of it.
    """
    environment, program = PEERS[peer]
    try:
        python = interpreter(environments, environment, progress.say)
    except UserError as error:
        return Told(set(), 0.0, str(error))
    progress.say(f"{peer} on {folder}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        words = [python, "-c", program, folder, scratch]
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        return Told(set(), seconds, " ".join((done.stderr or done.stdout).split())[-200:])
    return Told({frozenset(pair) for pair in json.loads(done.stdout.splitlines()[-1])}, seconds)
