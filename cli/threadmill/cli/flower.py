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
    """Run Flower in the foreground. It asks nobody for a password."""
    settings = (
        invocation_of(context)
        .settings(flower_host=host, flower_port=port, log_format="json" if as_json else None)
        .located()
    )
    check_broker(settings)
    app = _create(settings)
    try:
        found = _listen(app, settings, any_port=any_port)
        url = f"http://{settings.flower_host or '127.0.0.1'}:{found}"
        loop = app.io_loop.asyncio_loop
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, app.stop)
        # Flower's own timer fires for the first time after five seconds, and what runs before is not shown.
        app.io_loop.add_callback(app.events.on_enable_events)
        _log.info("flower.ready", url=url)
        show(as_json, {"url": url})
        app.start()
    finally:
        app.capp.close()


def _create(settings: Settings) -> Any:
    """Flower's tornado application over our Celery app."""
    with needs("flower"):
        from flower.app import Flower  # noqa: PLC0415
        from flower.options import options  # noqa: PLC0415
        from flower.urls import settings as urls  # noqa: PLC0415
    # Flower says at each look that nobody answered; that there are no workers is no trouble of Flower's.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    return Flower(capp=create_celery_app(settings), options=options, **urls)


def _listen(app: Any, settings: Settings, *, any_port: bool) -> int:
    """The port on which Flower listens. Raises SettingsInvalid where it is taken."""
    app.options.address = settings.flower_host
    app.options.port = settings.flower_port
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
