"""What documents say of the program, compared with the program."""

import dataclasses
import os
import re

import pytest

from tl_research.config import Config
from tl_research.settings import flag_text

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MARK = "\n## All flags of train\n"


def _read(*names):
    with open(os.path.join(_ROOT, *names), encoding="utf-8") as file:
        return file.read()


def _table_of_flags():
    """Returns Markdown tables of all settings, a group each, from their declarations."""
    lines = []
    for field in dataclasses.fields(Config):
        rules = field.metadata
        if rules["group"]:
            lines += ["", f"### {rules['group']}", "", "| Flag | Default | Meaning |"]
            lines += ["|---|---|---|"]
        default = "" if field.default in (None, ()) else f"`{flag_text(field.default)}`"
        choices = f" ({', '.join(rules['choices'])})" if rules["choices"] else ""
        meaning = f"{rules['help']}{choices}".replace("|", "\\|")
        lines.append(f"| `--{field.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def test_page_of_flags_is_what_the_config_declares():
    """TL_RESEARCH_RECORD=1 writes it anew."""
    by_hand, mark, table = _read("docs", "flags.md").partition(_MARK)
    assert mark and "## All flags" not in by_hand
    declared = _table_of_flags()
    if os.environ.get("TL_RESEARCH_RECORD"):
        with open(os.path.join(_ROOT, "docs", "flags.md"), "w", encoding="utf-8") as file:
            file.write(by_hand + mark + declared)
    else:
        assert table == declared


def _documents():
    for folder in ("", "docs", "recipes"):
        for name in sorted(os.listdir(os.path.join(_ROOT, folder))):
            if name.endswith(".md"):
                yield os.path.join(folder, name)


@pytest.mark.parametrize("document", _documents())
def test_links_and_flags_of_a_document_are_there(document):
    text = _read(document)
    folder = os.path.join(_ROOT, os.path.dirname(document))
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [link for link in links if not os.path.exists(os.path.join(folder, link))]
    assert not missing


def test_readme_can_be_read_in_five_minutes():
    text = _read("README.md")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1500
