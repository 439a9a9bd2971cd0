"""What quantized weights cost: perplexity, and divergence from the plain numbers, in Paceline and in llama.cpp.

The embedded model's file is quantized to 4 bits. Its numbers lie on a grid, so rounding them to 4 bits again would cost
nothing. What other roundings cost is therefore measured on these numbers moved at random by up to half a step of their
grid: as far as the numbers of which the file was made were moved. Both programs get the same numbers and the same text.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import print_table, write_result
from gguf import GGUFReader, GGUFWriter, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from app.checkpoint.source import find_model
from app.quality import TEXT, measure

_LEVELS = {"Q4_1": 15, "Q8_0": 254}
"""Steps between the least number of a block of 32 and its largest, or between the largest's opposite and itself."""
_FIGURES = {
    "perplexity": r"Mean PPL\(Q\) +: +(\S+)",
    "perplexity_of_reference": r"Mean PPL\(base\) +: +(\S+)",
    "perplexity_ratio": r"Mean PPL\(Q\)/PPL\(base\) +: +(\S+)",
    "perplexity_ratio_error": r"Mean PPL\(Q\)/PPL\(base\) +: +\S+ ± +(\S+)",
    "kl_divergence": r"Mean +KLD: +(\S+)",
    "kl_divergence_p99": r"99\.0% +KLD: +(\S+)",
    "same_greedy_token": r"Same top p: +(\S+)",
}
"""Paceline's names of what llama-perplexity prints."""


def write_plain(source: Path, target: Path, is_moved: bool) -> None:
    """Write a GGUF file of plain numbers, each as precise as bfloat16, with everything else that `source` says."""
    reader, rng = GGUFReader(source), np.random.default_rng(0)
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        if is_moved and tensor.tensor_type.name in _LEVELS:
            numbers = numbers + _moves(tensor, numbers, rng)
        writer.add_tensor(tensor.name, torch.from_numpy(numbers.astype(np.float32)).bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _moves(tensor: ReaderTensor, numbers: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Random moves (rows, columns) of up to half a step of a tensor's grid; each block of 32 has a step of its own."""
    blocks = numbers.reshape(len(numbers), -1, 32)
    kind = tensor.tensor_type.name
    reach = np.ptp(blocks, -1, keepdims=True) if kind == "Q4_1" else 2 * np.abs(blocks).max(-1, keepdims=True)
    moves: NDArray[Any] = rng.uniform(-0.5, 0.5, blocks.shape) * reach / _LEVELS[kind]
    return moves.reshape(numbers.shape)


class Llama:
    """llama.cpp's programs."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries

    def quantize(self, plain: Path, kind: str) -> Path:
        """A file of one of llama.cpp's types, beside the plain one."""
        file = plain.with_name(f"{plain.stem}-{kind}.gguf")
        self._run("llama-quantize", plain, file, kind)
        return file

    def compare(self, model: Path, plain: Path) -> dict[str, float]:
        """Figures of a model, with the plain numbers as the reference."""
        base = plain.with_suffix(".logits")
        if not base.exists():
            self._run("llama-perplexity", "-m", plain, "-f", TEXT, "--kl-divergence-base", base)
        printed = self._run("llama-perplexity", "-m", model, "--kl-divergence-base", base, "--kl-divergence")
        figures = {name: float(re.search(pattern, printed)[1]) for name, pattern in _FIGURES.items()}  # type: ignore[index]
        return figures | {"same_greedy_token": figures["same_greedy_token"] / 100}

    def _run(self, program: str, *arguments: object) -> str:
        command = [str(self._binaries / program), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def by_paceline(model: Path, plain: Path, **flags: str) -> dict[str, Any]:
    """Figures of a model, with the plain numbers as the reference."""
    with tempfile.NamedTemporaryFile() as out:
        measure(str(model), str(plain), None, Path(out.name), **flags)
        figures: dict[str, Any] = json.loads(Path(out.name).read_text())
        return {name: value for name, value in figures.items() if name not in ("model", "against")}


def run(folder: Path, llama: Llama | None, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows: what was quantized how, and what each program says of it."""
    embedded = (find_model("embedded") / "model.gguf").resolve()
    decoded, moved = folder / "decoded.gguf", folder / "moved.gguf"
    write_plain(embedded, decoded, is_moved=False)
    write_plain(embedded, moved, is_moved=True)
    cases = [("the embedded Q4_1 file", embedded, decoded, "auto")]
    cases += [(f"--quantization {kind}", moved, moved, kind) for kind in ("int8", "int4")]
    if llama:
        cases += [(f"{kind} file", llama.quantize(moved, kind), moved, "auto") for kind in args.kinds]
    rows = []
    for name, model, plain, quantization in cases:
        row: dict[str, Any] = {"weights": name}
        for dtype in args.dtypes:
            row[dtype] = by_paceline(model, plain, dtype=dtype, quantization=quantization, device="cpu")
        if llama and model != plain:
            row["llama.cpp"] = llama.compare(model, plain)
        rows.append(row)
    return rows


def _cells(figures: dict[str, float]) -> tuple[str, ...]:
    """What the table says of one row's figures by one program."""
    loss = f"{figures['perplexity_ratio'] - 1:+.2%} ± {figures['perplexity_ratio_error']:.2%}"
    divergences = f"{figures['kl_divergence']:.4f}", f"{figures['kl_divergence_p99']:.3f}"
    return f"{figures['perplexity']:.2f}", loss, *divergences, f"{figures['same_greedy_token']:.1%}"


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--llama", type=Path, help="the folder of llama-quantize and llama-perplexity; without: no files"
    )
    parser.add_argument("--kinds", nargs="*", default=["Q8_0", "Q4_0", "Q4_1", "Q4_K_M"], help="llama.cpp's types")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # for what Paceline keeps of these files
        rows = run(Path(folder), Llama(args.llama) if args.llama else None, args)
    print_table(
        ("weights", "by", "perplexity", "loss", "KL divergence", "99th percentile", "equal greedy tokens"),
        [(row["weights"], by, *_cells(row[by])) for row in rows for by in (*args.dtypes, "llama.cpp") if by in row],
    )
    write_result(args, {"text": TEXT.name, "figures": rows})


if __name__ == "__main__":
    main()
