"""A hook of mkdocs: the pages at the root of the repository are pages of the site, README.md the first one."""

from pathlib import Path

from mkdocs.structure.files import File

_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def on_files(files, config):
    """Adds the root's pages; their links into docs/ are links between neighbours on the site."""
    for name in _PAGES:
        text = (Path(config.config_file_path).parent / name).read_text()
        files.append(File.generated(config, _on_site(name), content=_to_neighbours(text.replace("](docs/", "]("), "")))
    return files


def on_page_markdown(markdown, **_):
    """Links from docs/ to the root's pages, which lie above it on disk and beside it on the site."""
    return _to_neighbours(markdown, "../")


def _to_neighbours(markdown, folder):
    for name in _PAGES:
        markdown = markdown.replace(f"]({folder}{name}", f"]({_on_site(name)}")
    return markdown


def _on_site(name):
    return "index.md" if name == "README.md" else name
