"""Puts the pages into a Flower that is otherwise as it comes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flower.app import rewrite_handler
from tornado.web import StaticFileHandler, url

from threadmill.core.settings import Settings
from threadmill.dlq.desk import Desk
from threadmill.dlq.pages import letters, tenants, threads
from threadmill.dlq.pages.errand import Errands
from threadmill.dlq.pages.frame import FrameLoader
from threadmill.dlq.pages.handler import STATIC, Services
from threadmill.dlq.pages.queries import Reader

# Pages are short readings, and few people look at once.
READERS = 4
# Trials and replays of many, at once.
ERRANDS = 16


def template_loader(flowers: str) -> FrameLoader:
    """What Flower's setting `template_loader` takes. flowers: the folder of its own templates."""
    return FrameLoader(flowers)


def add_pages(app: Any, settings: Settings) -> Services:
    """Adds the pages to a Flower application; the services are to be closed when it ends."""
    services = Services(
        desk=Desk(settings),
        reader=Reader(settings),
        readers=ThreadPoolExecutor(READERS, "pages"),
        errands=Errands(ERRANDS),
    )
    given = {"services": services}
    handlers = [
        url(path, handler, given, name=name)
        for path, handler, name in (*letters.PAGES, *threads.PAGES, *tenants.PAGES)
    ]
    handlers.append(url(r"/threadmill/static/(.*)", StaticFileHandler, {"path": STATIC}, name="asset"))
    if app.options.url_prefix:
        handlers = [rewrite_handler(handler, app.options.url_prefix) for handler in handlers]
    app.add_handlers(".*", handlers)
    return services
