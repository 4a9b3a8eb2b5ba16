"""spry: for the authors of Python functions.

A handler is a plain function; how it is called follows from its parameters.

    def main(params):                  # one parameter: the JSON object that was sent (or form fields, or the
        return {"hello": params["name"]}    # query parameters when there is no body); {} when there is nothing

    def main(event, context):          # two: as AWS Lambda calls it behind an HTTP API (payload version 2.0)
        return {"statusCode": 200, "body": "hello"}

    def main(request: spry.Request):   # annotated: the request as it came
        return spry.Response(request.body, headers={"content-type": "image/png"})

It may return

    dict, list                  JSON
    str                         text (UTF-8)
    bytes, bytearray, memoryview    those bytes
    spry.Response               any of these with a status and headers
    None                        204, no content

and, with two parameters, a dict with "statusCode" in the AWS style. Anything else fails the call (500), as an
exception does. An `async def` is run to its end.

What a handler prints is its log. Threads must not be started while the module is loaded: instances are forked
from the process that loaded it.
"""

import json as _json
import time as _time
from urllib.parse import parse_qsl as _parse_qsl

__all__ = ["Request", "Response"]


def _collect(pairs):
    """Pairs as a dict; a name that comes several times has a list."""
    result = {}
    for name, value in pairs:
        if name not in result:
            result[name] = value
        elif isinstance(result[name], list):
            result[name].append(value)
        else:
            result[name] = [result[name], value]
    return result


class Request:
    """One request. `body` is a memoryview of shared memory, without a copy: it is valid until the handler
    returns, so take `bytes(request.body)` of what is to be kept. Returning it answers with the very same
    memory."""

    __slots__ = ("method", "path", "query", "header_pairs", "body", "call_id", "deadline_ns", "_headers")

    def __init__(self, method, path, query, header_pairs, body, call_id, deadline_ns):
        self.method = method
        self.path = path
        self.query = query
        self.header_pairs = header_pairs
        self.body = body
        self.call_id = call_id
        self.deadline_ns = deadline_ns
        self._headers = None

    @property
    def headers(self):
        """Headers by name, in lower case; values of the same name are joined by a comma."""
        if self._headers is None:
            headers = {}
            for name, value in self.header_pairs:
                headers[name] = headers[name] + ", " + value if name in headers else value
            self._headers = headers
        return self._headers

    @property
    def params(self):
        """The query parameters; a name that comes several times has a list."""
        return _collect(_parse_qsl(self.query, keep_blank_values=True))

    def text(self):
        """The body as text."""
        return str(self.body, "utf-8")

    def json(self):
        """The body's JSON value."""
        return _json.loads(bytes(self.body))

    def form(self):
        """The fields of an application/x-www-form-urlencoded body."""
        return _collect(_parse_qsl(self.text(), keep_blank_values=True))

    def remaining(self):
        """Seconds until the call's time runs out."""
        return max(0.0, (self.deadline_ns - _time.time_ns()) / 1e9)

    def __repr__(self):
        return f"<spry.Request {self.method} {self.path or '/'} {len(self.body)} bytes>"


class Response:
    """A status, headers (a dict, or a list of pairs) and a body: str, bytes-like, dict, list or None."""

    __slots__ = ("status", "headers", "body")

    def __init__(self, body=None, status=200, headers=None):
        self.body = body
        self.status = status
        self.headers = headers

    def __repr__(self):
        return f"<spry.Response {self.status}>"
