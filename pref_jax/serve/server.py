"""The HTTP server: uvicorn, with clients who send slowly cut off, and a stop that finishes what was accepted."""

import functools
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from pref_jax.errors import UserError
from pref_jax.progress import log
from pref_jax.serve.settings import Limits

# Bytes of a request's head; seconds that an idle connection stays open, and that a stop waits for answers.
HEAD, IDLE, STOP = 32 << 10, 30, 30


class _Protocol(H11Protocol):
    """HTTP/1.1 whose clients have so many seconds for a request's head."""

    def __init__(self, *arguments: Any, seconds: float, **options: Any):
        super().__init__(*arguments, **options)
        self._seconds, self._timer = seconds, None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A client has sent something: the clock runs while it is no whole head."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._watch()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP: answered, unless an answer has begun; whoever still reads the body learns of the end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._cut_off)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut_off(self) -> None:
        self._timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that ends with exit code 0 when it is asked to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops it; a second interrupt does not wait for answers."""
        del frame
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Begins to listen, and says where."""
        await super().startup(sockets)
        for server in self.servers:
            for own in server.sockets:
                host, port = own.getsockname()[:2]
                log(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; port 0: any that is free.

    Raises:
      UserError: if it is taken, or not of this machine.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        fix = "name another --port or --host, or stop what listens there"
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror or error}); {fix}") from None
    return found


def make_server(app: Starlette, *, limits: Limits) -> Server:
    """A server of the application; `run` it with sockets of `bind`."""
    config = uvicorn.Config(
        app,
        http=functools.partial(_Protocol, seconds=limits.head_seconds),  # pyright: ignore[reportArgumentType]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        h11_max_incomplete_event_size=HEAD,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=STOP,
    )
    return Server(config)


def log_to_stderr() -> None:
    """Log lines of requests, and what uvicorn finds wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("pref_jax.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
