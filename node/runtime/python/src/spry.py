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

In a chain a handler gets what the step before has answered. After a fan-out that is a list: with one parameter, a
Python list of the values; a spry.Request has them in `parts`, where their writers put them.
`spry.emit(name, value, content_type=None)` gives a value to the chain's triggers, and the call goes on.

What a handler prints is its log. Threads must not be started while the module is loaded: instances are forked
from the process that loaded it.
"""

import json as _json
import time as _time
from urllib.parse import parse_qsl as _parse_qsl

from _spry import emit

__all__ = ["Request", "Response", "emit"]


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
    """One request. `body` and `parts` are memoryviews of shared memory, without a copy: they are valid until the handler
    returns, so take `request.bytes()` of what is to be kept. Returning the body answers with the very same memory.

    In a chain, method, path, query, call id and deadline are those of the client's call of the chain."""

    __slots__ = ("method", "path", "query", "header_pairs", "call_id", "deadline_ns", "_body", "_parts", "_headers")

    def __init__(self, method, path, query, header_pairs, body, call_id, deadline_ns, parts=None):
        self.method = method
        self.path = path
        self.query = query
        self.header_pairs = header_pairs
        self.call_id = call_id
        self.deadline_ns = deadline_ns
        self._body = body
        self._parts = parts
        self._headers = None

    @property
    def body(self):
        """The body, read-only. A list is joined to one when this is first asked for: JSON values to an array, others each
        with its length before it (4 bytes, little-endian). The content-type header says which."""
        if self._body is None:
            values = [value for _, value in self._parts]
            if self.headers.get("content-type") == "application/json":
                joined = b"[" + b",".join(values) + b"]"
            else:
                joined = b"".join(piece for v in values for piece in (len(v).to_bytes(4, "little"), v))
            self._body = memoryview(joined)
        return self._body

    @property
    def parts(self):
        """The values of a list, in order, as pairs of a name (which may be empty) and a memoryview; of any other
        input, the body alone."""
        if self._parts is None:
            self._parts = [("", self._body)]
        return self._parts

    def bytes(self):
        """The body, copied."""
        return bytes(self.body)

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
        return _json.loads(self.bytes())

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
