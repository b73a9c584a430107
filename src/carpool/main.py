"""`app`, so that `uvicorn carpool.main:app` works: settings from the environment and `config.toml`.

`CARPOOL_CONFIG` names another file. Flags are uvicorn's here; `carpool serve` is the way to carpool's own.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from fastapi import FastAPI

from carpool.assemble import assemble
from carpool.config import DEFAULT_FILE, load_config, unknown_variables
from carpool.errors import ConfigError
from carpool.observe.log import configure_logging
from carpool.server.app import create_app

logger = logging.getLogger(__name__)


def build() -> FastAPI:
    """The app that the environment asks for; what is wrong with it is one line and exit status 2."""
    try:
        config = load_config(Path(os.environ.get("CARPOOL_CONFIG", DEFAULT_FILE)))
        configure_logging(config.server.log_level)
        for words in unknown_variables():
            logger.warning(words)
        return create_app(assemble(config))
    except ConfigError as error:
        sys.stderr.write(f"carpool: {error}\n")
        sys.exit(2)


app = build()
