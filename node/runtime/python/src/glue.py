"""The part of the Python runtime that is written in Python: loading a handler, finding out how it wants to be
called, the AWS shapes, tracebacks. Not for function authors; `spry` is."""

import asyncio
import base64
import binascii
import gc
import importlib
import importlib.machinery
import inspect
import json
import json.decoder
import json.encoder
import os
import site
import sys
import threading
import time
import traceback
import typing
from urllib.parse import parse_qsl

import spry
from _spry_watch import Watch
from spry import _collect

OWN_FILES = ("<spry", "<frozen importlib", importlib.__file__)


class Refused(Exception):
    """The function can't be loaded; the message says what to do, a traceback would say nothing more."""


# Layers: what several functions import, without any function

def preload(modules, packages):
    """Imports these, as far as they can be. Returns the names of all modules that are there then, and what was looked for
    beside: names of modules, names of distributions, whether somebody has looked at which distributions there are, and
    whether somebody has gone through the folders by himself."""
    one_thread()
    use_packages(packages)
    with Watch() as watch:
        for name in modules:
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except BaseException:
                    pass  # a module that another one makes up, or that works only within a function
    platform = sys.modules.get("platform")
    if hasattr(platform, "_uname_cache"):
        platform._uname_cache = None  # the host's name differs
    forget_folders()
    find_generators()
    gc.collect()
    gc.freeze()
    imported = [name for name in sys.modules if isinstance(name, str)]
    return imported, sorted(watch.modules), sorted(watch.distributions), watch.all, watch.walked


def forget_folders():
    """As `importlib.invalidate_caches`, which from CPython 3.12 on imports `importlib.metadata`, and a third of the library
    with it, into whoever calls it."""
    sys.path_importer_cache.clear()
    for finder in sys.meta_path:
        if finder is not importlib.machinery.PathFinder and hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def imports(code):
    """The names of the modules that are there and none of the function's own, in the order of their import; and whether
    modules are looked for in other folders than it was given, and those of its packages."""
    found = []
    for name, module in list(sys.modules.items()):
        try:
            file = getattr(module, "__file__", None)
            places = [file] if file else list(getattr(module, "__path__", ()))
            if not any(str(place).startswith(code) for place in places):
                found.append(str(name))
        except Exception:
            pass
    return found, any(is_elsewhere(str(folder), code) for folder in sys.path)


# Where modules are looked for before a function is loaded.
GIVEN = []


def is_elsewhere(folder, code):
    within = lambda parent: (folder + "/").startswith(parent.rstrip("/") + "/")
    folder = os.path.normpath(folder)
    return folder != code and (within(code) or not any(within(one) for one in GIVEN if one))


def one_thread():
    # Libraries of numbers start their thread pools when they are imported, and a zygote must have one thread.
    # Parallelism is by instances; a function that wants a pool says so in [env].
    for pool in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ.setdefault(pool, "1")


# Loading

def use_packages(folders):
    """Has modules looked for in these folders, in this order. What a layer had of them is there already."""
    if all(folder in sys.path for folder in folders):
        return
    # As in a virtual environment: after the standard library, before what the system has.
    others = [folder for folder in sys.path if folder not in folders]
    sys.path[:] = others
    known = set(others)
    for folder in folders:
        site.addsitedir(folder, known)
    added = sys.path[len(others):]
    system = ("site-packages", "dist-packages")
    place = next((at for at, folder in enumerate(others) if os.path.basename(folder) in system), len(others))
    sys.path[:] = others[:place] + added + others[place:]


def load(code, handler, function_name, packages):
    """Imports the handler. Returns it and how it is called: "none", "params", "event" or "request"."""
    one_thread()
    use_packages(packages)
    os.environ["SPRY_FUNCTION"] = function_name
    module_name, colon, name = handler.partition(":")
    if not (module_name and colon and name):
        raise Refused(f"handler = {handler!r} is not of the form \"module:function\"")
    GIVEN[:] = [str(folder) for folder in sys.path if folder != code]
    if sys.path[:1] != [code]:
        sys.path.insert(0, code)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise Refused(f"handler = {handler!r}: there is no module {module_name!r} in {code}") from None
        raise
    function = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if function is None:
        there = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        hint = f"it has {', '.join(there)}" if there else "it has no function at all"
        raise Refused(f"handler = {handler!r}: module {module_name!r} has no function {name!r} ({hint})")
    if not callable(function):
        raise Refused(f"handler = {handler!r} is a {type(function).__name__}, not a function")
    how = convention(function, handler)
    if inspect.iscoroutinefunction(function):
        function = run_to_end(function)
    Context.function_name = function_name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=False, errors="backslashreplace")
    find_generators()
    for _ in range(16):
        # Often enough to have what the interpreter makes of it frozen with the rest.
        seed()
    gc.collect()
    gc.freeze()
    return function, how


def run_to_end(function):
    def run(*arguments):
        return asyncio.run(function(*arguments))
    return run


def convention(function, handler):
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return "params"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    forced = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if forced or len(required) > 2:
        wants = ", ".join(forced or [p.name for p in required])
        raise Refused(
            f"handler = {handler!r} wants {wants}: a handler has one parameter (the parsed JSON object, or a "
            f"spry.Request by annotation) or two (event, context)")
    if positional and is_request(function, positional[0]):
        if len(required) > 1:
            raise Refused(f"handler = {handler!r} takes a spry.Request and wants another argument")
        return "request"
    if len(required) == 2 or (len(positional) >= 2 and positional[1].name == "context"):
        return "event"
    if positional:
        return "params"
    return "event" if any(p.kind is p.VAR_POSITIONAL for p in parameters) else "none"


def is_request(function, parameter):
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = typing.get_type_hints(inspect.unwrap(function)).get(parameter.name)
        except Exception:
            return annotation in ("spry.Request", "Request")
    return isinstance(annotation, type) and issubclass(annotation, spry.Request)


def threads():
    """The names of the threads beside the first."""
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]


# Random numbers, which mustn't be the same in every instance

# NumPy's generators that were made before the fork, and seeded from the system's entropy.
GENERATORS = []


def find_generators():
    """Finds those made since this was called last. One that was given a seed is meant to repeat itself, and is left
    alone; it can be told by the seed's length: what the system gives has 128 bits."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return
    # By type: asking an object for its class may run code of its own.
    kind, of_module = numpy_random.BitGenerator, getattr(numpy_random.mtrand._rand, "_bit_generator", None)
    for found in gc.get_objects():
        if issubclass(type(found), kind) and found is not of_module:
            entropy = getattr(getattr(found, "seed_seq", None), "entropy", None)
            if isinstance(entropy, int) and entropy.bit_length() > 64:
                GENERATORS.append(found)


def after_fork():
    """Python's own `random` sees to itself, OpenSSL too; `uuid`, `secrets` and `os.urandom` ask the system."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    for generator in GENERATORS:
        generator.state = type(generator)().state


# What is to be called in each fork, in this order: here as well, for processes that are rewound to what they were after theirs.
AFTER_FORK = []
OF_CPYTHON = os.register_at_fork
# Whether all that was registered is called in the new process only.
ONE_SIDED = True


def register_at_fork(**hooks):
    global ONE_SIDED
    OF_CPYTHON(**hooks)
    if "after_in_child" in hooks:
        AFTER_FORK.append(hooks["after_in_child"])
    if hooks.keys() - {"after_in_child"}:
        ONE_SIDED = False


def renewals():
    """What is left to be called in an instance whose zygote has one thread, and has called `seed` for it: what is the
    runtime's own, and what isn't. `None`: CPython's own work after a fork, which is about threads that are gone and locks that
    these held, and takes ten times as long."""
    if not ONE_SIDED:
        return None
    thread = threading.current_thread()
    own = [thread._set_native_id] if hasattr(thread, "_set_native_id") else []
    # CPython 3.12 and later: an event loop isn't taken along, whose descriptors are closed here.
    if hasattr(asyncio.events, "on_fork"):
        own.append(asyncio.events.on_fork)
    others = [hook for hook in AFTER_FORK if not is_own_seed(hook)]
    return own, [lambda: run(others)] if others else []


def seed():
    """Gives the generators new states: in the zygote, ahead of a fork, for that fork alone, or in the new process."""
    run([hook for hook in AFTER_FORK if is_own_seed(hook)])


def nobody(*_):
    """Answers as a function that does nothing."""


def is_own_seed(hook):
    return hook is after_fork or "random" in sys.modules and hook == sys.modules["random"]._inst.seed


def renews():
    """Whether there is anything to do in `rewound`."""
    return len(AFTER_FORK) > 1 or bool(GENERATORS) or "numpy.random" in sys.modules


def rewound():
    """Makes the process differ from what it was after the last rewinding, as forks differ."""
    run(AFTER_FORK)


def run(hooks):
    for hook in hooks:
        try:
            hook()
        except Exception:
            traceback.print_exc()


os.register_at_fork = register_at_fork
os.register_at_fork(after_in_child=after_fork)
if "random" in sys.modules:
    AFTER_FORK.append(sys.modules["random"]._inst.seed)


# JSON, without what json.loads and json.dumps do anew at each call

def make_json():
    """A scanner (text, index) -> (value, end), and an encoder (value, 0) -> pieces; both in C where Python's are.
    The markers are the encoder's own, to notice circles: to be emptied when it has raised."""
    def refuse(value):
        raise TypeError(f"{type(value).__name__} is not JSON serializable")
    scan = json.decoder.JSONDecoder().scan_once
    markers = {}
    if json.encoder.c_make_encoder is not None:
        escape = json.encoder.encode_basestring_ascii
        encode = json.encoder.c_make_encoder(markers, refuse, escape, None, ":", ",", False, False, False)
    else:
        encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=refuse)
        encode = lambda value, _: (encoder.encode(value),)
    return scan, encode, markers


def params_of_query(query):
    return _collect(parse_qsl(query, keep_blank_values=True))


def params_of_form(body):
    return _collect(parse_qsl(str(body, "utf-8"), keep_blank_values=True))


# AWS

class Context:
    """The second parameter of an AWS handler."""

    function_name = ""
    function_version = "$LATEST"
    memory_limit_in_mb = None
    identity = None
    client_context = None
    log_stream_name = None

    __slots__ = ("aws_request_id", "_deadline_ns", "__dict__")

    def __init__(self, call_id, deadline_ns):
        self.aws_request_id = call_id
        self._deadline_ns = deadline_ns

    @property
    def invoked_function_arn(self):
        return f"arn:spry:lambda:local:0:function:{self.function_name}"

    @property
    def log_group_name(self):
        return f"/spry/function/{self.function_name}"

    def get_remaining_time_in_millis(self):
        return max(0, (self._deadline_ns - time.time_ns()) // 1_000_000)


def event(method, path, query, header_pairs, body, call_id, deadline_ns, _parts):
    """The arguments of an AWS handler: the event of an HTTP API, payload version 2.0, and the context."""
    headers, cookies = {}, []
    for name, value in header_pairs:
        if name == "cookie":
            cookies.extend(part.strip() for part in value.split(";"))
        else:
            headers[name] = headers[name] + "," + value if name in headers else value
    now = time.time()
    made = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path or "/",
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": Context.function_name,
            "domainName": headers.get("host", ""),
            "domainPrefix": Context.function_name,
            "http": {
                "method": method,
                "path": path or "/",
                "protocol": "HTTP/1.1",
                "sourceIp": headers.get("x-forwarded-for", "").split(",")[0].strip(),
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": call_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        made["cookies"] = cookies
    if query:
        parameters = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            parameters[name] = parameters[name] + "," + value if name in parameters else value
        made["queryStringParameters"] = parameters
    if len(body):
        try:
            made["body"] = str(body, "utf-8")
        except UnicodeDecodeError:
            made["body"] = base64.b64encode(body).decode("ascii")
            made["isBase64Encoded"] = True
    return made, Context(call_id, deadline_ns)


def aws_response(result):
    """A spry.Response of a result with a statusCode."""
    status = result["statusCode"]
    if isinstance(status, str) and status.isdecimal():
        status = int(status)
    headers = [(str(name), str(value)) for name, value in (result.get("headers") or {}).items()]
    for name, values in (result.get("multiValueHeaders") or {}).items():
        headers.extend((str(name), str(value)) for value in values)
    headers.extend(("set-cookie", str(cookie)) for cookie in result.get("cookies") or ())
    body = result.get("body")
    if body is None:
        body = b""
    elif result.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise ValueError(f"the result says isBase64Encoded, but its body is not base64: {error}") from None
    return spry.Response(body, status, headers)


# Failing

def describe(error, raised_at):
    """An exception in words: one line with its type and message, then the traceback, without the runtime's frames."""
    if isinstance(error, Refused):
        return str(error)
    headline = "".join(traceback.format_exception_only(type(error), error)[-1:]).strip()
    if isinstance(error, SyntaxError):
        headline = f"{type(error).__name__}: {error}"
    trace = traceback.TracebackException(type(error), error, raised_at)
    hide_own_frames(trace, set())
    return " ".join(headline.split("\n")) + "\n" + "".join(trace.format())


def hide_own_frames(trace, seen):
    if trace is None or id(trace) in seen:
        return
    seen.add(id(trace))
    kept = [frame for frame in trace.stack if not frame.filename.startswith(OWN_FILES)]
    trace.stack = traceback.StackSummary.from_list(kept)
    hide_own_frames(trace.__cause__, seen)
    hide_own_frames(trace.__context__, seen)


def exit_code(error):
    """What the process ends with when the function raises SystemExit."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xff
    print(error.code, file=sys.stderr)
    return 1
