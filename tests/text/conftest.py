"""Model folders with tokenizers of the common kinds, and transformers' view of the same folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.text.families import SOURCES, Message

CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café: déjà vu", "don't stop, now!", "a b c d e f"] * 8
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="session")
def smol_folder(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's tokenizer (byte-level BPE), as transformers has saved it."""
    folder = tmp_path_factory.mktemp("smol")
    for file in embedded_model.iterdir():
        if file.suffix != ".gguf":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def folders(smol_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of tokenizer."""
    makers = {"metaspace": _metaspace, "legacy": _legacy, "unigram": _unigram, "wordpiece": _wordpiece}
    made = {kind: save(make(), tmp_path_factory.mktemp(kind)) for kind, make in makers.items()}
    return {"smol": smol_folder, **made}


@pytest.fixture(scope="session")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    """Paceline's tokenizer for each kind."""
    return {kind: Tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="session")
def oracles(folders: dict[str, Path]) -> dict[str, Any]:
    """transformers' tokenizer for each kind."""
    return {kind: oracle_of(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="session")
def smol(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """The embedded model's tokenizer."""
    return tokenizers["smol"]


@pytest.fixture(scope="session")
def templates(smol: Tokenizer) -> dict[str, ChatTemplate]:
    """Each family's template as that of a model."""
    return {
        family: ChatTemplate(source, smol.special_tokens, smol.control_tokens) for family, source in SOURCES.items()
    }


@pytest.fixture(scope="session")
def ours(templates: dict[str, ChatTemplate]) -> Callable[..., str]:
    """Renders a chat with the template of a family, as Paceline does it."""

    def render(family: str, chat: list[Message], **options: Any) -> str:
        return "".join(text for text, _ in templates[family].render(chat, **options))

    return render


@pytest.fixture(scope="session")
def theirs(oracles: dict[str, Any]) -> Callable[..., str]:
    """Renders a chat with the template of a family, as transformers does it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(family: str, chat: list[Message], **options: Any) -> str:
        given = {"add_generation_prompt": True, "chat_template": SOURCES[family], **options}
        if family == "deepseek_v3":  # reads calls where the content is None, which apply_chat_template would drop
            given |= oracles["smol"].special_tokens_map
            return str(render_jinja_template([chat], **given)[0][0])
        text: str = oracles["smol"].apply_chat_template(chat, tokenize=False, **given)
        return text

    return render


def oracle_of(folder: Path) -> Any:
    """transformers' tokenizer of a folder. Importing transformers takes seconds, which quick tests do not have."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def save(fast: FastTokenizer, folder: Path, **config: Any) -> Path:
    """A model folder with this tokenizer."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", **names, **config})
    return folder


def copy(folder: Path, to: Path, **files: dict[str, Any]) -> Path:
    """A copy of a model folder with other JSON files: name without ending to content."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for name, content in files.items():
        write_json(to / f"{name}.json", content)
    return to


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(content), encoding="utf-8")


def _spaces_and_bytes() -> decoders.Decoder:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


def _sentencepiece_bpe() -> FastTokenizer:
    fast = FastTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False)
    fast.train_from_iterator(CORPUS, trainer)
    # The byte tokens are trained as special ones; in a real folder they are ordinary entries of the vocabulary.
    content = json.loads(fast.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return FastTokenizer.from_str(json.dumps(content))


def _metaspace() -> FastTokenizer:
    """As Mistral's and newer Llama 2's: byte fallback, a space before the first word of the text only."""
    fast = _sentencepiece_bpe()
    fast.decoder = _spaces_and_bytes()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def _legacy() -> FastTokenizer:
    """As Llama 2's first one: the space is the normalizer's work, and comes after each control token too."""
    fast = _sentencepiece_bpe()
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.pre_tokenizer = None
    fast.decoder = _spaces_and_bytes()
    return fast


def _unigram() -> FastTokenizer:
    """With byte fallback; its control tokens are ordinary entries of the vocabulary as well."""
    fast = FastTokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL + BYTES, unk_token="<unk>", show_progress=False
    )
    fast.train_from_iterator(CORPUS, trainer)
    content = json.loads(fast.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    content["model"]["byte_fallback"] = True
    fast = FastTokenizer.from_str(json.dumps(content))
    fast.decoder = _spaces_and_bytes()
    return fast


def _wordpiece() -> FastTokenizer:
    fast = FastTokenizer(models.WordPiece(unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    fast.decoder = decoders.WordPiece(cleanup=False)
    return fast
