"""Sends a server what strangers send, and says how it stood it: 200 requests at once, and files that are none.

  python examples/serve/check_server.py exported/photos

It starts the server on a free port of this machine, with the Python that runs it, and ends it. The last line of
standard output is one JSON object; status 1 if an answer is wrong.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
REQUESTS, IMAGES = 200, 20
TOLERANCE = 1e-5


def post(port: int, body: object, path: str = "/embed", headers: dict[str, str] | None = None) -> tuple[int, dict]:
    """Status and JSON of an answer. A server may answer and hang up before it was told everything."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        is_in_pieces = bool(headers and "Transfer-Encoding" in headers)
        connection.request("POST", path, body, headers or {}, encode_chunked=is_in_pieces)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A whole PNG of side x side black pixels of one bit: half a megabyte that would be ten gigabytes."""
    packer, row = zlib.compressobj(9), b"\0" * (1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def large_jpeg(width: int = 8660, height: int = 5774) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def hostile() -> dict[str, tuple[object, dict[str, str]]]:
    """Bodies and headers by what they are."""
    whole = png(np.random.default_rng(0).integers(0, 256, [64, 64, 3], np.uint8))
    too_much = b"\xff\xd8" + bytes(21 * 2**20)
    return {
        "garbage": (np.random.default_rng(1).bytes(5000), {}),
        "zero bytes": (b"", {}),
        "a truncated PNG": (whole[: len(whole) // 2], {}),
        "a PNG of 60,000 x 60,000": (bomb(), {}),
        "a JPEG of 50 megapixels": (large_jpeg(), {}),
        "21 MB": (too_much, {}),
        "21 MB in pieces of no declared length": (iter([too_much[: 2**20]] * 21), {"Transfer-Encoding": "chunked"}),
        "a PNG cut in its header": (whole[:20], {}),
    }


def largest() -> tuple[bytes, bytes]:
    """Images of just as many pixels as are read: a JPEG, and a PNG whose pixels are transparent."""
    gradient = Image.linear_gradient("L").resize((5000, 5000))
    transparent = io.BytesIO()
    Image.merge("RGBA", [gradient] * 4).save(transparent, "PNG")
    return large_jpeg(5000, 5000), transparent.getvalue()


def start(folder: str) -> tuple[subprocess.Popen, int]:
    """The server and its port, when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "uvicorn", "server:app", "--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "MODEL": os.path.abspath(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    server = subprocess.Popen([sys.executable, *words], cwd=HERE, env=environment)
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return server, port
        except OSError:
            if server.poll() is not None:
                sys.exit(f"the server ended with status {server.returncode}")
            time.sleep(0.5)
    server.kill()
    sys.exit("the server does not answer")


def peak_megabytes(server: subprocess.Popen) -> float:
    with open(f"/proc/{server.pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1024


def distance(found: list[float], expected: np.ndarray) -> float:
    difference = np.abs(np.array(found) - np.array(expected))
    return float(difference.max() / np.abs(expected).max())


def expected_features(folder: str, images: list[np.ndarray]) -> list[np.ndarray]:
    """What the model gives for pixels, without a server."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    serve = loaded.signatures["serving_default"]
    return [serve(images=tf.constant(image[None]))["features"].numpy()[0] for image in images]


def check(port: int, server: subprocess.Popen, folder: str) -> dict:
    """What was asked and answered."""
    random = np.random.default_rng(2)
    pixels = [random.integers(0, 256, [80 + 3 * i, 96, 3], np.uint8) for i in range(IMAGES)]
    images, expected = list(map(png, pixels)), expected_features(folder, pixels)
    post(port, images[0])
    begin = time.perf_counter()
    idle = peak_megabytes(server)
    with ThreadPoolExecutor(REQUESTS) as crowd:
        answers = list(crowd.map(lambda request: post(port, images[request % IMAGES]), range(REQUESTS)))
    seconds = time.perf_counter() - begin
    errors = [
        distance(answer["features"], expected[request % IMAGES]) if status == 200 else float("inf")
        for request, (status, answer) in enumerate(answers)
    ]
    refusals = {}
    for name, (body, headers) in hostile().items():
        status, answer = post(port, body, headers=headers)
        refusals[name] = {"status": status, "detail": answer.get("detail", "")}
    with ThreadPoolExecutor(4) as crowd:
        large = list(crowd.map(lambda image: post(port, image)[0], [*largest()] * 2))
    after = distance(post(port, images[0])[1]["features"], expected[0])
    return {
        "concurrent": REQUESTS,
        "largest_error": max(errors),
        "requests_per_second": REQUESTS / seconds,
        "refusals": refusals,
        "statuses_of_the_largest": large,
        "error_afterwards": after,
        "megabytes_before": idle,
        "peak_megabytes": peak_megabytes(server),
    }


def is_right(result: dict) -> bool:
    """Whether all were answered rightly, or refused with a reason that tells nothing about the inside."""
    refused = all(
        400 <= refusal["status"] < 500 and refusal["detail"] and not re.search(r"0x|object at", refusal["detail"])
        for refusal in result["refusals"].values()
    )
    taken = set(result["statuses_of_the_largest"]) == {200}
    return refused and taken and max(result["largest_error"], result["error_afterwards"]) <= TOLERANCE


if __name__ == "__main__":
    process, own_port = start(sys.argv[1])
    try:
        outcome = check(own_port, process, sys.argv[1])
    finally:
        process.terminate()
        process.wait(30)
    print(json.dumps(outcome))
    sys.exit(not is_right(outcome))
