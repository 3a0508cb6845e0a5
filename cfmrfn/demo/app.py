"""The page's server: what it takes, and from whom. Nothing that comes is written or logged."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import ipaddress
import re
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cfmrfn.demo.answers import Answers, NotAPicture
from cfmrfn.errors import DataError, OutOfMemory
from cfmrfn.process.command import memory_options

MOST_AT_A_TIME = 8  # forms that are held, of which one is predicted
MOST_SECONDS = 60  # for a form to come
FORM_OVERHEAD = 16 * 1024  # bytes of a form beside its file

# A form that is too large is read on, to so many times the most, and thrown away: browsers show no
# answer before they have sent all.
_DISCARDED = 10

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def application(answers: Answers, most_bytes: int, names: Collection[str] = ()) -> ASGIApp:
    """The page, its data and predictions, as an ASGI application.

    Args:
        answers: of the network.
        most_bytes: of a picture's file.
        names: of this machine, beside localhost and addresses, by which the page is asked for.
    """
    page = (resources.files("cfmrfn.demo") / "page.html").read_text("utf-8")
    policy = _content_security_policy(page)
    about = {**answers.about(), "most_bytes": most_bytes}
    # one thread: one prediction at a time, and the event loop is free
    worker = ThreadPoolExecutor(1, "prediction")
    at_a_time = 0

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def tell_about(request: Request) -> Response:
        return JSONResponse(about)

    @memory_options("give a smaller picture")
    def respond(data: bytes, *, attention: bool, picture: bool) -> Response:
        return JSONResponse(answers.answer(data, attention=attention, picture=picture))

    async def predict(request: Request) -> Response:
        nonlocal at_a_time
        if at_a_time >= MOST_AT_A_TIME:
            raise HTTPException(503, "too many others wait; try again", {"Retry-After": "1"})
        at_a_time += 1
        try:
            form = await _read_form(request, most_bytes)
            call = functools.partial(
                respond,
                await _picture_of(form),
                attention=form.get("attention") == "1",
                picture=form.get("picture") == "1",
            )
            return await asyncio.get_running_loop().run_in_executor(worker, call)
        except NotAPicture as error:
            raise HTTPException(415, str(error)) from error
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        except OutOfMemory as error:
            raise HTTPException(500, str(error)) from error
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        finally:
            at_a_time -= 1

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/about", tell_about),
            Route("/predict", predict, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    return _Guarded(app, names)


class _TooLarge(MultiPartException):
    """An error of this kind makes the parser close what it holds."""


async def _read_form(request: Request, most_bytes: int) -> FormData:
    """The form in a request, held in memory; raises HTTPException where it is not legal."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(
            415, "a form is needed (multipart/form-data) whose field `file` is a picture"
        )
    parser = MultiPartParser(
        request.headers, _limited(request, most_bytes), max_files=1, max_fields=2
    )
    parser.spool_max_size = most_bytes + FORM_OVERHEAD + 1  # beyond it, it would write to the disk
    try:
        return await asyncio.wait_for(parser.parse(), MOST_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the form did not come within {MOST_SECONDS} seconds") from None
    except _TooLarge as error:
        raise HTTPException(413, error.message) from None
    except (MultiPartException, FormParserError) as error:
        reason = getattr(error, "message", str(error))
        raise HTTPException(400, f"the form is not legal: {reason}") from error


async def _limited(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """The request's body; raises _TooLarge where there is too much of it, and gives no more."""
    most = most_bytes + FORM_OVERHEAD
    length = request.headers.get("content-length", "")
    is_too_large = length.isdecimal() and int(length) > most
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        is_too_large = is_too_large or count > most
        if count > most * _DISCARDED:
            break
        if not is_too_large:
            yield chunk
    if is_too_large:
        raise _TooLarge(
            f"the file is too large; {most_bytes / 1e6:g} MB are the most: make it smaller"
        )


async def _picture_of(form: FormData) -> bytes:
    """The bytes of the form's file; raises HTTPException where there is none."""
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise HTTPException(400, "the form has no file in its field `file`")
        return await file.read()
    finally:
        await form.close()


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """The error itself goes to the terminal."""
    return JSONResponse({"error": "an error within the server; its terminal shows it"}, 500)


class _Guarded:
    """An application that other sites' pages cannot use, with headers that make browsers help.

    A page of another site can make its own name point to this machine, and can send forms to any
    address: the first shows in `Host`, the second in `Origin`.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                of_answer = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    of_answer.setdefault(name, value)
                message["headers"] = of_answer.raw
            await send(message)

        refusal = self._refusal(headers)
        app = self._app if refusal is None else refusal
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            return JSONResponse(
                {"error": "the host of the address must be localhost, an IP address or --host"}, 400
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return JSONResponse({"error": "pages of other sites may not use this one"}, 403)
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a name with or without a port cannot be that of another site."""
        found = re.fullmatch(r"(\[[\da-fA-F:.]+\]|[\w.-]+)(:\d+)?", host)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _content_security_policy(page: str) -> str:
    """Allows the page its own script and styles, and to ask its own server."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(part.encode()).digest() for part in parts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    rules = {
        "default-src": "'none'",
        "script-src": hashes("script"),
        "style-src": hashes("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())
