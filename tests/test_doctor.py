"""`paceline doctor`, and names that were mistyped."""

import json
import re
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from app import doctor
from app.api.chat.schema import ChatRequest
from app.api.edge.body import validate
from app.checkpoint.source import find_model
from app.core.machine import usable_cpus
from app.core.nearest import did_you_mean
from app.doctor import Device
from app.errors import InvalidRequestError, ModelError, StartupError
from app.settings import load_settings

pytestmark = pytest.mark.slow

GPU = Device("cuda:0", "A GPU", 80 * 10**9, 3e12, ["compute capability 9.0"])


def test_it_tells_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_MEASURED_BYTES", {"cpu": 2**24})
    threads = torch.get_num_threads()
    doctor.doctor(as_json=True)
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    (cpu,) = found["devices"]
    assert found["cores"] == usable_cpus()
    assert 0 < cpu["memory"] <= psutil.virtual_memory().total
    assert 1e8 < cpu["bandwidth"] < 1e13
    flags = Path("/proc/cpuinfo").read_text()
    assert ("AVX2" in cpu["instructions"]) == bool(re.search(r"\bavx2\b", flags))
    assert ("AVX512-VNNI" in cpu["instructions"]) == bool(re.search(r"\bavx512_vnni\b", flags))


@pytest.mark.parametrize(("bits", "largest"), [(16, 32), (8, 32), (4, 70)])
def test_what_fits(bits: int, largest: float) -> None:
    """80 GB: 32 billion weights of 2 bytes are 64 GB, and 70 billion of 4.5 bits 39 GB."""
    fit = doctor._fit(GPU, bits)
    assert fit.largest == largest
    weights = largest * 1e9 * {16: 2, 8: 8.5 / 8, 4: 4.5 / 8}[bits]
    assert fit.tokens_per_second == pytest.approx(3e12 / weights)
    assert doctor._fit(replace(GPU, memory=1000), bits).largest is None


def test_the_words_are_about_the_device_that_models_run_on() -> None:
    cpu = Device("cpu", "A CPU", 8 * 10**9, 30e9, ["AVX2"])
    fits = [doctor._fit(cpu, bits) for bits in (16, 8, 4)]
    assert any("AVX2" in line for line in doctor._advice([cpu], fits))
    assert any("8 billion" in line for line in doctor._advice([cpu], fits))  # 4.5 GB, 30 GB/s: 6.7 tokens/s
    both = [*fits, *(doctor._fit(GPU, bits) for bits in (16, 8, 4))]
    assert any("on the GPU" in line for line in doctor._advice([cpu, GPU], both))
    report = doctor.Report("Linux", 2, 10**9, {}, [cpu, GPU], both, ["Advice."])
    assert "A GPU" in doctor.told(report)
    full = replace(GPU, memory=1000)
    assert doctor._advice([cpu, full], [doctor._fit(full, 4)])[-1] == "There is no memory for any model now."


def test_what_is_measured_fits_into_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    zeros = torch.zeros

    def make(size: int, device: str) -> torch.Tensor:
        assert device == "cuda:0"
        sizes.append(size)
        return zeros(size)

    monkeypatch.setattr(torch, "zeros", make)
    monkeypatch.setattr(doctor, "_wait", lambda _: None)
    assert doctor._bandwidth("cuda:0", 2**20) > 0
    assert sizes == [2**20 // 4 // 4]


def test_the_nearest_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm.gguf").touch()
    with pytest.raises(ModelError, match=r"did you mean smollm\.gguf\?"):
        find_model(str(tmp_path / "smolm.gguf"))
    with pytest.raises(StartupError, match=r"max_mode_len: there is no such setting; did you mean max_model_len\?"):
        load_settings(max_mode_len=3)
    with pytest.raises(StartupError, match=r"did you mean bfloat16\?"):
        load_settings(dtype="bfloat17")
    with pytest.raises(InvalidRequestError, match=r"temprature; did you mean temperature\?"):
        validate(ChatRequest, {"messages": [{"role": "user", "content": ""}], "temprature": 1})
    monkeypatch.setenv("PACELINE_MAX_QEUE", "1")
    with pytest.raises(StartupError, match=r"did you mean PACELINE_MAX_QUEUE\?"):
        load_settings()
    assert did_you_mean("nothing", ["like", "it"]) == ""
