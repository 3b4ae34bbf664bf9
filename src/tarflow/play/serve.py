"""The page served: on this machine alone unless told, with nothing sent to anybody else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from tarflow.pretrained import name_of
from tarflow.runs import Run

MOST_CONNECTIONS = 512  # at once; a browser holds three or so


def check_installed() -> None:
    """Raise ValueError where there is no gradio, with what to do."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError("tarflow play: gradio is not installed; pip install 'tarflow[ui]'") from None


def application(run: Run) -> Any:
    """The page of a run as an ASGI application, behind its gate.

    Raises:
        ValueError: gradio is missing, or the run is of images that are neither grey nor RGB.
    """
    check_installed()
    import fastapi
    import gradio

    from tarflow.play.answers import Answers
    from tarflow.play.gate import Gate
    from tarflow.play.page import events_of, looks, page
    from tarflow.play.studio import Studio

    answers = Answers(Studio(run))

    blocks = page(answers, title_of(run))
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=True,
        max_file_size=1,
        **looks(),
    )
    return Gate(app, events_of(blocks))


def title_of(run: Run) -> str:
    """What is played with, by its name and not its place."""
    return f"tarflow · {name_of(run.path) or run.path.resolve().name}"


def serve(run: Run, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page of a run until somebody ends it; `ready(address)` is called once it can be reached.

    Args:
        port: 0 takes one that is free.

    Raises:
        OSError: the port is in use, or the host is not of this machine.
    """
    with listening(host, port) as found:  # before anything takes time
        app = application(run)
        import uvicorn

        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(app, log_level="error", access_log=False, limit_concurrency=MOST_CONNECTIONS)
        config.timeout_graceful_shutdown = 2  # a browser's stream of events would be waited for
        ready(f"http://{shown}:{found.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[found])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises OSError that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(256)
    except OSError as error:
        found.close()
        raise OSError(f"{host}:{port}: {error.strerror or error}") from None
    return found
