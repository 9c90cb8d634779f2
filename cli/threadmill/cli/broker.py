"""Whether the broker answers, asked before something is started that would wait for it without end."""

from __future__ import annotations

import kombu.exceptions
from kombu.utils.url import maybe_sanitize_url
from redis.exceptions import RedisError

from threadmill.core.celery_app import create_celery_app
from threadmill.core.errors import BrokerUnavailable, SettingsInvalid
from threadmill.core.settings import Settings


def broker_address(settings: Settings) -> str:
    """Where the broker is, without its password."""
    return str(maybe_sanitize_url(settings.broker_url))


def check_broker(settings: Settings) -> None:
    """Raises BrokerUnavailable unless the broker answers within `connect_timeout`, and SettingsInvalid."""
    app = create_celery_app(settings)
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_step=0, timeout=settings.connect_timeout
            )
    except (kombu.exceptions.KombuError, RedisError, OSError) as error:
        raise BrokerUnavailable(broker_address(settings), str(error)) from None
    except (KeyError, ValueError) as error:  # kombu's words for a scheme or a port that is none
        raise SettingsInvalid([f"broker_url: {error.args[0]}"]) from None
    finally:
        app.close()
