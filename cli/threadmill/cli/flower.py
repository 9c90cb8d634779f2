"""`threadmill flower`: Celery's monitor, which shows a run under its own id."""

from __future__ import annotations

import errno
import logging
import signal
from typing import Annotated, Any

import structlog
import typer

from threadmill.cli.broker import check_broker
from threadmill.cli.extras import needs
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import show
from threadmill.core.celery_app import create_celery_app
from threadmill.core.errors import SettingsInvalid
from threadmill.core.settings import Settings

_log = structlog.get_logger("threadmill.flower")


def flower(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Where to listen; default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Default: 5555; 0 takes a free one.")
    ] = None,
    any_port: Annotated[
        bool, typer.Option("--any-port", help="Where the port is taken, take a free one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run Flower in the foreground, with pages for dead letters, threads and tenants.

    Flower's own options are taken from the environment: FLOWER_BASIC_AUTH=user:password asks for a password
    (several: with commas), FLOWER_READ_ONLY=true only shows. Without a password it can be acted on from this
    machine only.
    """
    settings = (
        invocation_of(context)
        .settings(flower_host=host, flower_port=port, log_format="json" if as_json else None)
        .located()
    )
    check_broker(settings)
    app, pages = _create(settings)
    try:
        found = _listen(app, settings, any_port=any_port)
        scheme = "https" if app.ssl_options else "http"
        prefix = (app.options.url_prefix or "").strip("/")
        url = f"{scheme}://{settings.flower_host or '127.0.0.1'}:{found}/{prefix}".rstrip("/")
        loop = app.io_loop.asyncio_loop
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, app.stop)
        # Flower's own timer fires for the first time after five seconds, and what runs before is not shown.
        app.io_loop.add_callback(app.events.on_enable_events)
        _log.info("flower.ready", url=url)
        show(as_json, {"url": url})
        app.start()
    finally:
        pages.close()
        app.capp.close()


def _create(settings: Settings) -> tuple[Any, Any]:
    """Flower's tornado application over our Celery app, and what our pages in it stand on."""
    with needs("flower"):
        from flower.app import Flower  # noqa: PLC0415
        from flower.command import apply_env_options, extract_settings  # noqa: PLC0415
        from flower.options import options  # noqa: PLC0415
        from flower.urls import settings as given  # noqa: PLC0415

        from threadmill.dlq.pages import add_pages, template_loader  # noqa: PLC0415
    try:
        apply_env_options()
        extract_settings()
    except (ValueError, SystemExit) as error:
        reason = str(error) if isinstance(error, ValueError) else "Flower's log above says which"
        raise SettingsInvalid([f"FLOWER_…: an option has an impossible value: {reason}"]) from None
    # Flower says at each look that nobody answered; that there are no workers is no trouble of Flower's.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    given = {**given, "template_loader": template_loader(given["template_path"])}
    app = Flower(capp=create_celery_app(settings), options=options, **given)
    return app, add_pages(app, settings)


def _listen(app: Any, settings: Settings, *, any_port: bool) -> int:
    """The port on which Flower listens. Raises SettingsInvalid where it is taken."""
    app.options.address = settings.flower_host
    app.options.port = settings.flower_port
    app.options.unix_socket = ""  # it listens where Threadmill's own settings say
    try:
        return int(app.start_http_server())
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not any_port:
            raise SettingsInvalid(
                [
                    f"flower_port: cannot listen on {settings.flower_host}:{settings.flower_port}: "
                    f"{error.strerror}; choose another with --port"
                ]
            ) from None
    _log.warning("flower.port_taken", port=settings.flower_port)
    app.options.port = 0
    return int(app.start_http_server())
