"""Collects what the documentation site shows in build/site-source, where the links still hold.

The pages of docs/ link to examples, tests and other pages of the repository. The folder that `mkdocs` reads
is a copy of the repository's tree with the files that are linked, and no others: a source file becomes a page
of its own.
`make site` runs this before `mkdocs build`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "build" / "site-source"
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "THREAT_MODEL.md")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".hcl": "hcl",
    ".service": "ini", ".erl": "erlang",
}  # fmt: skip
PICTURES = {".svg", ".png"}


def list_pages() -> list[Path]:
    """The Markdown pages of the site."""
    found = [ROOT / name for name in PAGES]
    for folder in ("docs", "examples", "benchmarks", "deploy"):
        found += (ROOT / folder).rglob("*.md")
    return sorted({page for page in found if page.exists()})


def stage_page(page: Path) -> set[Path]:
    """Write a page with its links to folders and source files changed. Returns the files that it links."""
    sources: set[Path] = set()

    def change(found: re.Match[str]) -> str:
        aim = (page.parent / found[1]).resolve()
        if "://" in found[1] or not aim.is_relative_to(ROOT):
            return found[1]
        if aim == ROOT / "README.md":
            return found[1].replace("README.md", "index.md")
        if aim.is_dir():
            return describe_folder(found[1], aim, sources)
        if aim.is_file() and aim.suffix not in {".md", *PICTURES}:
            sources.add(aim)
            return f"{found[1]}.md".replace(".github/", "github/")  # Hidden files are no pages.
        return found[1]

    parts = FENCED.split(page.read_text(encoding="utf-8"))
    parts[::2] = [LINK.sub(change, text) for text in parts[::2]]
    staged = TARGET / page.relative_to(ROOT)
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text("".join(parts), encoding="utf-8")
    return sources


def describe_folder(link: str, folder: Path, sources: set[Path]) -> str:
    """The link to a folder: its README, or a page that lists its files."""
    if (folder / "README.md").exists():
        return f"{link.rstrip('/')}/README.md"
    files = sorted(each for each in folder.rglob("*") if is_source(each))
    sources.update(files)
    listing = [f"# {folder.relative_to(ROOT)}", ""]
    listing += [f"- [`{each.relative_to(folder)}`]({each.relative_to(folder)}.md)" for each in files]
    staged = TARGET / folder.relative_to(ROOT) / "files.md"
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text("\n".join(listing) + "\n", encoding="utf-8")
    return f"{link.rstrip('/')}/files.md"


def is_source(path: Path) -> bool:
    """Whether a file is text that a page may show."""
    named = path.suffix in LANGUAGES or path.name in {"Dockerfile", "Makefile"}
    return path.is_file() and named and "__pycache__" not in path.parts


def stage_source(path: Path) -> None:
    """Write a page that shows a source file."""
    shown = path.relative_to(ROOT)
    language = LANGUAGES.get(path.suffix, "text")
    fence = "`````"
    body = path.read_text(encoding="utf-8", errors="replace")
    staged = TARGET / f"{shown}.md".replace(".github/", "github/")
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text(f"# {shown}\n\n{fence}{language}\n{body}\n{fence}\n", encoding="utf-8")


def stage_home() -> None:
    """Write the first page of the site: docs/index.md, with links from the root."""
    text = (TARGET / "docs" / "index.md").read_text(encoding="utf-8")
    home = LINK.sub(lambda found: found[1] if "://" in found[1] else f"docs/{found[1]}", text)
    (TARGET / "index.md").write_text(home, encoding="utf-8")
    (TARGET / "docs" / "index.md").unlink()


def main() -> None:
    """Write the whole folder anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    sources: set[Path] = set()
    for page in list_pages():
        sources |= stage_page(page)
    for path in sorted(sources):
        stage_source(path)
    for path in ROOT.glob("*/**/*"):
        if path.suffix in PICTURES and {"docs", "benchmarks"} & set(path.relative_to(ROOT).parts[:1]):
            staged = TARGET / path.relative_to(ROOT)
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged)
    stage_home()


if __name__ == "__main__":
    main()
