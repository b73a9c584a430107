"""`app`, so that `uvicorn carpool.main:app` works: settings from the environment and `config.toml`.

`CARPOOL_CONFIG` names another file. Flags are uvicorn's here; `carpool serve` is the way to carpool's own.
What is wrong with the settings is one line and exit status 2. A model that cannot be loaded is one line as
well, which the ASGI server writes, with the exit status that it has for that.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from carpool.assemble import assemble
from carpool.config import DEFAULT_FILE, load_config, unknown_variables
from carpool.errors import CarpoolError, ConfigError
from carpool.observe.log import configure_logging
from carpool.server.app import create_app

logger = logging.getLogger(__name__)


def build() -> FastAPI:
    """The app that the environment asks for."""
    try:
        config = load_config(Path(os.environ.get("CARPOOL_CONFIG", DEFAULT_FILE)))
        configure_logging(config.server.log_level)
        for words in unknown_variables():
            logger.warning(words)
        return _brief(create_app(assemble(config)))
    except ConfigError as error:
        sys.stderr.write(f"carpool: {error}\n")
        sys.exit(2)


def _brief(app: FastAPI) -> FastAPI:
    """Have one line for why it cannot start, in the place of the traceback that Starlette makes of it."""
    lifespan = app.router.lifespan

    async def brief(scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            error = sys.exc_info()[1]  # the one that Starlette handles while it sends this
            if message["type"] == "lifespan.startup.failed" and isinstance(error, CarpoolError):
                message = {**message, "message": f"carpool: {error}"}
            await send(message)

        await lifespan(scope, receive, say)

    app.router.lifespan = brief  # type: ignore[method-assign]
    return app


app = build()
