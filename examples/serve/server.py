"""An HTTP server around an exported SavedModel: image bytes in, features or nearest neighbours out.

It needs TensorFlow, FastAPI and Pillow, and nothing of this project:

  MODEL=exported/photos uvicorn server:app --port 8000
  curl --data-binary @photo.jpg http://localhost:8000/embed
  curl --data-binary @photo.jpg "http://localhost:8000/neighbours?k=5"   with INDEX=FILE of `scripts.extract`

Everything that a stranger can send is bounded: the bytes of a body, of all bodies together, the time that sending
takes, the pixels that a header declares, and how many images are decoded at a time.
"""

from __future__ import annotations

import asyncio
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

MODEL, INDEX = os.environ["MODEL"], os.environ.get("INDEX", "")
MAX_BODY = int(os.environ.get("MAX_BODY", 20 * 2**20))  # bytes of one image file
MAX_BODIES = int(os.environ.get("MAX_BODIES", 200 * 2**20))  # bytes of all requests that are being served
MAX_PIXELS = int(os.environ.get("MAX_PIXELS", 25_000_000))
MAX_SECONDS = float(os.environ.get("MAX_SECONDS", 30))  # that sending a body may take
WORKERS = int(os.environ.get("WORKERS", 2))  # images that are decoded and embedded at a time
KINDS = ("JPEG", "PNG", "BMP")  # a GIF's frames cannot be bounded by its header
MOST_NEIGHBOURS = 100

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is refused below

app = FastAPI(title="instcls_tf", docs_url=None, redoc_url=None)
executor = ThreadPoolExecutor(WORKERS)
model = tf.saved_model.load(MODEL)  # kept: the signature does not hold its variables
embed_files = model.signatures["jpeg"]
bytes_in_flight = 0


def read_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit features `[N, F]` and ids `[N]` of a file of `scripts.extract`."""
    with np.load(path, allow_pickle=False) as arrays:
        rows, ids = arrays["backbone"].astype(np.float32), arrays["ids"]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), ids


index = read_index(INDEX) if INDEX else None


async def receive(request: Request, body: bytearray) -> None:
    """Collects a body, never more than may be held."""
    global bytes_in_flight
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > MAX_BODY:
        raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    async for part in request.stream():
        bytes_in_flight += len(part)
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
        if bytes_in_flight > MAX_BODIES:
            raise HTTPException(503, "too many images are being sent, try again")


def refuse_unfit(content: bytes) -> None:
    """Looks at the header alone, before anything is decoded."""
    if not content:
        raise HTTPException(400, "the body is empty, wanted the bytes of an image file")
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the image has more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises almost anything, and its texts name objects by their addresses
        raise HTTPException(415, f"the body is no image, wanted one of {', '.join(KINDS)}") from error
    if width * height > MAX_PIXELS:
        raise HTTPException(413, f"the image has {width * height} pixels, at most {MAX_PIXELS} are read")


def embed(content: bytes) -> dict[str, np.ndarray]:
    """The model's outputs for one file."""
    refuse_unfit(content)
    found = {name: rows.numpy()[0] for name, rows in embed_files(image_bytes=tf.constant([content])).items()}
    if not found["ok"]:
        raise HTTPException(422, "the image is damaged or of an unknown kind")
    return found


async def embedded(request: Request) -> dict[str, np.ndarray]:
    """Reads a request and embeds its image when its turn comes."""
    global bytes_in_flight
    body = bytearray()
    try:
        await asyncio.wait_for(receive(request, body), MAX_SECONDS)
        return await asyncio.get_running_loop().run_in_executor(executor, embed, bytes(body))
    except ClientDisconnect as error:
        raise HTTPException(400, "the sender has left") from error
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the body took more than {MAX_SECONDS:g} seconds") from error
    finally:
        bytes_in_flight -= len(body)


@app.post("/embed")
async def answer_embed(request: Request) -> dict:
    """`features` `[F]` and `projection` `[D]`."""
    found = await embedded(request)
    return {name: found[name].tolist() for name in ("features", "projection")}


@app.post("/neighbours")
async def answer_neighbours(request: Request, k: int = 5) -> dict:
    """The `k` images of the index that are most alike: `id` and `cosine` each."""
    if index is None:
        raise HTTPException(404, "this server has no index")
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise HTTPException(422, f"k must be 1 to {MOST_NEIGHBOURS}")
    features = (await embedded(request))["features"]
    rows, ids = index
    cosines = rows @ (features / max(float(np.linalg.norm(features)), 1e-12))
    nearest = np.argsort(-cosines)[:k]
    return {"neighbours": [{"id": int(ids[row]), "cosine": float(cosines[row])} for row in nearest]}


@app.get("/health")
def answer_health() -> dict:
    """Whether the server is there."""
    return {"ok": True}


@app.exception_handler(Exception)
def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """What nobody has thought of: the log has it, the stranger is told nothing about the inside."""
    return JSONResponse({"detail": "the server failed on this request"}, 500)
