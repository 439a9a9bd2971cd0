"""Images stand where chat templates show them, also where a template reads texts alone."""

from pathlib import Path
from typing import Any

import pytest

from app.api.chat.images import Gallery
from app.core.media import Media, Run
from app.errors import InvalidRequestError
from app.media.preparer import ChatImage
from app.text.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "text" / "templates"
LLAVA = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' or 'image' in c or 'image_url' in c %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in c %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
)
TEXTS_ONLY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TOKENS = ["<image>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
TOKENS += ["<start_of_image>", "<start_of_turn>", "<end_of_turn>"]

MIXED = [("system", ["S"]), ("user", ["a", 0, "b <image>", 1, "c"])]
FROM_A_TOOL = [("user", ["hi"]), ("assistant", ["ok"]), ("user", [0, "x"]), ("tool", ["see", 1])]
TWO_TURNS = [("user", ["x", 0]), ("user", [1, "y"])]
SHOWN = [
    (LLAVA, "<image>", MIXED, "S USER: (0)\n(1)\na b <image> c "),
    (LLAVA, "<image>", FROM_A_TOOL, "USER: hi ASSISTANT: ok USER: (0)\nx USER: <tool_response>\nsee\n(1)\n"
     "</tool_response> "),
    (QWEN, "<|image_pad|>", MIXED, "S<|im_end|>\n<|im_start|>user\na<|vision_start|>(0)<|vision_end|>b <image>"
     "<|vision_start|>(1)<|vision_end|>c<|im_end|>\n"),
    (QWEN, "<|image_pad|>", FROM_A_TOOL, "user\n<|vision_start|>(0)<|vision_end|>x<|im_end|>\n<|im_start|>user\n"
     "<tool_response>\nsee\n<|vision_start|>(1)<|vision_end|>\n</tool_response><|im_end|>\n"),
    ("gemma3", "<start_of_image>", MIXED, "S\n\na(0)b <image>(1)c<end_of_turn>\n<start_of_turn>model\n"),
    ("gemma3", "<start_of_image>", TWO_TURNS, "x\n(0)\n\n(1)\ny<end_of_turn>\n<start_of_turn>model\n"),
    (TEXTS_ONLY, "<image>", TWO_TURNS, "[user]x\n(0)[user](1)\ny"),
]  # fmt: skip


def show(source: str, placeholder: str, chat: list[tuple[str, list[Any]]]) -> tuple[str, list[int]]:
    """The rendered text of a chat, and the order of its images, of which number n is shown as (n)."""
    template = ChatTemplate(source, {"bos_token": ""}, TOKENS)
    gallery = Gallery([ChatImage(f"({n})", Media(b"", {}, 1)) for n in range(2)], placeholder, 0)
    marks = iter(gallery.marks)

    def part(role: str, said: Any) -> dict[str, str]:
        if isinstance(said, str):
            return {"type": "text", "text": said}
        return {"type": "image" if role == "user" else "text", "text": next(marks)}

    messages = [{"role": role, "content": [part(role, one) for one in said]} for role, said in chat]
    segments, order = gallery.show(template.render(messages), template.image_as_shown(placeholder))
    return "".join(text for text, _ in segments), order


@pytest.mark.parametrize(("source", "placeholder", "chat", "end"), SHOWN, ids=range(len(SHOWN)))
def test_images_stand_where_templates_show_them(source: str, placeholder: str, chat: Any, end: str) -> None:
    source = (TEMPLATES / f"{source}.jinja").read_text() if source == "gemma3" else source
    text, order = show(source, placeholder, chat)
    assert text.endswith(end)
    assert order == [0, 1]


def test_a_template_that_drops_images_or_makes_some_up_is_an_error() -> None:
    drops = "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequestError, match="does not show all images"):
        show(drops, "<image>", MIXED)
    with pytest.raises(InvalidRequestError, match="more images than there are"):
        show(LLAVA + "<image>", "<image>", MIXED)


def test_places_are_runs_of_tokens() -> None:
    images = [ChatImage("", Media(bytes([n]), {}, n)) for n in (3, 2)]
    placed = Gallery(images, "<image>", 7).placed([1, 7, 7, 2, 7, 3, 7, 7], [1, 0])
    assert [(one.media.num_tokens, one.runs) for one in placed] == [
        (2, [Run(1, 2, 0)]),
        (3, [Run(4, 1, 0), Run(6, 2, 1)]),
    ]
    with pytest.raises(InvalidRequestError, match="a token that stands for images"):
        Gallery(images, "<image>", 7).placed([7] * 6, [0, 1])
