"""Images per second through HTTP for one client and for many, of a classifier with random weights.

Each client sends one JPEG a call, and waits for its labels. No two calls of a round have the same image, so that none
is recognized. Within each round one number of clients follows the other, on the same server.
"""

import argparse
import asyncio
import base64
import json
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import paceline_serve, print_table, write_result
from PIL import Image

MODELS: dict[str, dict[str, Any]] = {
    "mobilenet-v2-0.35-96": {"depth_multiplier": 0.35, "image_size": 96},
    "resnet-18": {
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "vit-tiny": {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "MobileNetV2": {"size": {"shortest_edge": 110}, "crop_size": {"height": 96, "width": 96}},
    "ConvNext": {"size": {"shortest_edge": 224}},
    "ViT": {"size": {"height": 224, "width": 224}},
}
CLASSES = {
    "mobilenet-v2-0.35-96": ("MobileNetV2", "MobileNetV2"),
    "resnet-18": ("ResNet", "ConvNext"),
    "vit-tiny": ("ViT", "ViT"),
}
"""Of models and of their processors."""


def write_model(name: str, folder: Path) -> None:
    """A classifier of 1,000 labels with the shape of a known small one, and its processor."""
    import transformers

    family, kind = CLASSES[name]
    config = getattr(transformers, f"{family}Config")(num_labels=1000, **MODELS[name])
    getattr(transformers, f"{family}ForImageClassification")(config).save_pretrained(folder)
    processor = {"image_processor_type": f"{kind}ImageProcessor", **PROCESSORS[kind]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def make_urls(count: int, seed: int) -> list[str]:
    """JPEGs of 320 by 240 pixels, which look like photographs to a decoder."""
    rng, urls = np.random.default_rng(seed), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        file = BytesIO()
        small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
    return urls


async def rate(url: str, clients: int, urls: list[str]) -> float:
    """Images a second, with so many clients that each have one call open."""
    left = iter(urls)
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:

        async def client() -> None:
            for image in left:
                answer = await http.post("/v1/classify", json={"input": [{"image": image}], "top_k": 5})
                assert len(answer.raise_for_status().json()["data"][0]["top"]) == 5

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(urls) / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="mobilenet-v2-0.35-96")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--count", type=int, default=256, help="images of a round, for each number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    args = parser.parse_args()
    rates: dict[int, list[float]] = {clients: [] for clients in args.clients}
    with tempfile.TemporaryDirectory() as folder:
        write_model(args.model, Path(folder))
        with paceline_serve("--model", folder, *args.serve) as server:
            asyncio.run(rate(server.url, max(args.clients), make_urls(2 * max(args.clients), 0)))  # to warm up
            for number in range(args.rounds):
                for clients in args.clients:
                    urls = make_urls(args.count, 1 + number * len(args.clients) + args.clients.index(clients))
                    rates[clients].append(asyncio.run(rate(server.url, clients, urls)))
    medians = {clients: statistics.median(values) for clients, values in rates.items()}
    first = medians[args.clients[0]]
    print_table(("clients", "images/s", "times"), [(c, value, value / first) for c, value in medians.items()])
    write_result(args, {"images_s": rates, "medians": medians}, args.model)


if __name__ == "__main__":
    main()
