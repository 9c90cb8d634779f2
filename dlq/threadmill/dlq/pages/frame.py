"""The templates: ours, and Flower's own with our links in its navigation."""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

from threadmill.dlq.pages import words

FOLDER = Path(__file__).parent / "templates"
NAVIGATION = "navbar.html"
LINKS = b'{% include "threadmill_links.html" %}'
END_OF_LIST = b"</ul>"


class FrameLoader(Loader):
    """Finds a template in our folder, else in Flower's.

    Flower's navigation is not copied but added to: at the end of its first list, which is that of its pages.
    A Flower whose navigation has no list shows our links after it.
    """

    def __init__(self, flowers: str) -> None:
        """flowers: the folder of Flower's own templates."""
        super().__init__(str(FOLDER), namespace={"words": words})
        self._flowers = Path(flowers)

    def _create_template(self, name: str) -> Template:
        own = FOLDER / name
        source = (own if own.is_file() else self._flowers / name).read_bytes()
        if name == NAVIGATION:
            before, end, after = source.partition(END_OF_LIST)
            source = before + LINKS + end + after if end else source + LINKS
        return Template(source, name=name, loader=self)
