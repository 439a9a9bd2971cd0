"""What the README says of settings is what there is."""

from pathlib import Path

from app.settings import GROUPS, RequestLimits, shown_default

README = (Path(__file__).parent.parent / "README.md").read_text()


def settings_table() -> str:
    """The table of all settings, as it stands in the README."""
    lines = ["| setting | default | what |", "| --- | --- | --- |"]
    for group in (*GROUPS, RequestLimits):
        for name, field in group.model_fields.items():
            lines.append(f"| `{name}` | {shown_default(field)} | {field.description} |")
    return "\n".join(lines)


def test_the_readme_lists_every_setting() -> None:
    assert settings_table() in README, settings_table()
