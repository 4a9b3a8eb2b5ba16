//! Python functions, through the real module in the system's interpreter.

use std::fs;

use crate::harness::{Answer, Instance, Zygote};
use nix::sys::wait::WaitStatus;
use spry_wire::frame::RequestHead;

fn load(source: &str) -> Zygote {
    Zygote::python(source).unwrap_or_else(|message| panic!("refused: {message}"))
}

fn refused(source: &str) -> String {
    Zygote::python(source).err().expect("refused at deployment")
}

fn get(query: &str) -> RequestHead<'_> {
    RequestHead { call_id: "call-1", method: "GET", query, ..RequestHead::default() }
}

fn post(content_type: &'static str) -> RequestHead<'static> {
    let headers = vec![("content-type", content_type.as_bytes())];
    RequestHead { call_id: "call-1", method: "POST", headers, ..RequestHead::default() }
}

fn call(instance: &mut Instance, body: &str) -> Answer {
    instance.call(&post("application/json"), body.as_bytes())
}

#[test]
fn one_parameter_is_the_object_that_was_sent() {
    let zygote = load("def main(params):\n    return {'got': params}\n");
    assert!(zygote.runtime.starts_with("CPython 3."), "{}", zygote.runtime);
    let mut instance = zygote.fork();
    let answer = call(&mut instance, " {\"name\": \"Zoë\", \"n\": [1, 2.5, null, true]} \n");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), r#"{"got":{"name":"Zo\u00eb","n":[1,2.5,null,true]}}"#);
    assert_eq!(call(&mut instance, "").text(), r#"{"got":{}}"#);
    assert_eq!(call(&mut instance, "[1]").text(), r#"{"got":[1]}"#);
    assert_eq!(
        instance.call(&get("a=1&b=x%20y&a=2&c="), b"").text(),
        r#"{"got":{"a":["1","2"],"b":"x y","c":""}}"#
    );
    let form = post("application/x-www-form-urlencoded; charset=utf-8");
    assert_eq!(instance.call(&form, b"a=1&b=%C3%A9").text(), r#"{"got":{"a":"1","b":"\u00e9"}}"#);
    // No content type says otherwise, so it is taken for JSON, like `curl -d` would want.
    assert_eq!(instance.call(&get(""), b"{\"x\":1}").text(), r#"{"got":{"x":1}}"#);
}

#[test]
fn a_body_that_is_no_json_is_the_clients_mistake() {
    let zygote = load("def main(params):\n    return params\n");
    let mut instance = zygote.fork();
    for (body, why) in [
        (&b"not json"[..], "Expecting value: line 1 column 1"),
        (b"{\"a\": 1} x", "Extra data"),
        (b"{\"a\": ", "Expecting value"),
        (b"{'a': 1}", "Expecting property name"),
        (b"   ", "Expecting value"),
        (b"\xff\xfe\x00", "not even text"),
    ] {
        let answer = instance.call(&post("application/json"), body);
        assert_eq!(answer.status, 400, "{answer:?}");
        let text = answer.text();
        assert!(
            text.starts_with(r#"{"error":{"code":"bad_request","message":"the body is not JSON: "#),
            "{text}"
        );
        assert!(
            text.contains(why) && text.contains("spry.Request") && text.contains(r#""call_id":"call-1""#),
            "{text}"
        );
    }
    assert_eq!(call(&mut instance, "{}").text(), "{}");
}

#[test]
fn what_a_handler_may_return() {
    let zygote = load(
        "import spry\n\
         VALUES = {\n\
         'str': 'grüße', 'bytes': b'\\x00\\xff', 'bytearray': bytearray(b'ab'), 'list': [1, {'a': None}], 'none': None,\n\
         'view': memoryview(b'0123456789')[2:8:2], 'empty': b'',\n\
         'response': spry.Response({'a': 1}, 418, {'X-Tea': 'green', 'Set-Cookie': 'a=b'}),\n\
         'pairs': spry.Response('<p>', headers=[('content-type', 'text/html'), ('x-a', 1), ('x-a', 2)]),\n\
         'redirect': spry.Response(status=302, headers={'location': '/'}),\n\
         }\n\
         def main(params):\n    return VALUES[params['key']]\n",
    );
    let mut instance = zygote.fork();
    let mut answer = |key: &str| instance.call(&get(&format!("key={key}")), b"");
    let text = answer("str");
    assert_eq!((text.text(), text.header("content-type")), ("grüße", Some("text/plain; charset=utf-8")));
    let bytes = answer("bytes");
    assert_eq!(
        (&bytes.body[..], bytes.header("content-type")),
        (&b"\x00\xff"[..], Some("application/octet-stream"))
    );
    assert_eq!(answer("bytearray").body, b"ab");
    assert_eq!(answer("view").body, b"246");
    assert_eq!(answer("empty").body, b"");
    assert_eq!(answer("list").text(), r#"[1,{"a":null}]"#);
    let none = answer("none");
    assert_eq!((none.status, none.body.len(), none.headers.len()), (204, 0, 0));
    let response = answer("response");
    assert_eq!((response.status, response.text()), (418, r#"{"a":1}"#));
    assert_eq!(response.header("x-tea"), Some("green"));
    assert_eq!(response.header("content-type"), Some("application/json"));
    let pairs = answer("pairs");
    assert_eq!(pairs.headers.len(), 3, "{pairs:?}");
    assert_eq!((pairs.text(), pairs.header("content-type")), ("<p>", Some("text/html")));
    let redirect = answer("redirect");
    assert_eq!((redirect.status, redirect.body.len(), redirect.headers.len()), (302, 0, 1));
}

#[test]
fn nonsense_fails_the_call_and_says_what_is_allowed() {
    let zygote = load(
        "import spry\nloop = []\nloop.append(loop)\n\
         class Odd:\n    def __repr__(self): raise ValueError('no')\n\
         def main(params):\n    return eval(params['return'])\n",
    );
    let mut instance = zygote.fork();
    let mut failed =
        |code: &str| call(&mut instance, &format!("{{\"return\": \"{code}\"}}")).failed().to_owned();
    assert_eq!(
        failed("42"),
        "the function returned something of type int, which is not a dict, list, str, bytes, spry.Response or None"
    );
    for code in ["{1, 2}", "object()", "(1, 2)", "main", "Odd()", "3.5", "True"] {
        assert!(failed(code).starts_with("the function returned something of type"), "{code}");
    }
    assert!(failed("{'a': object()}").starts_with("TypeError: object is not JSON serializable"));
    assert!(failed("loop").starts_with("ValueError: Circular reference detected"));
    assert!(failed("loop").starts_with("ValueError: Circular reference detected"), "and again");
    assert!(failed("[float('nan')]").starts_with("ValueError: Out of range float values"));
    assert!(failed("'\\\\ud800'").starts_with("UnicodeEncodeError"), "a lone surrogate is no text");
    assert!(failed("spry.Response('', 99)").contains("99 is not an HTTP status"));
    assert!(failed("spry.Response('', 'x')").contains("status is 'x', no number"));
    assert!(failed("spry.Response('', Odd())").contains("something without a repr"));
    assert!(failed("spry.Response(5)").contains("body is something of type int"));
    assert!(failed("spry.Response('', headers=[1])").contains("neither a dict nor a list of pairs"));
    assert!(failed("spry.Response('', headers={'a b': 'c'})").contains("\"a b\""));
    assert!(failed("spry.Response('', headers={'a': 'b\\\\r\\\\nc: d'})").contains("HTTP doesn't allow"));
    assert!(failed("'x' * 7000000").contains("over the limit of 6291456 bytes"));
    assert_eq!(call(&mut instance, "{\"return\": \"'fine'\"}").text(), "fine");
}

#[test]
fn an_exception_is_told_with_the_functions_own_frames() {
    let zygote = load(
        "def inner(x):\n    raise TypeError('wrong\\ncolour')\n\n\
         def main(params):\n    try:\n        inner(1)\n    except TypeError as error:\n        raise KeyError('mauve') from error\n",
    );
    let mut instance = zygote.fork();
    let answer = call(&mut instance, "{}");
    let text = answer.failed();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "KeyError: 'mauve'");
    assert_eq!(lines[1], "Traceback (most recent call last):", "{text}");
    assert!(lines[2].contains("function.py\", line 6, in main"), "{text}");
    assert!(text.contains("direct cause of the following exception"), "{text}");
    assert!(!text.contains("<spry"), "{text}");
    let base = load("def main(params):\n    raise KeyboardInterrupt\n");
    let text = call(&mut base.fork(), "{}").failed().to_owned();
    assert!(text.starts_with("KeyboardInterrupt\nTraceback"), "{text}");
}

#[test]
fn two_parameters_are_called_as_aws_does() {
    let zygote = load(
        "import json\n\
         def main(event, context):\n    \
         if event['rawPath'] == '/shape': return {'event': event, 'id': context.aws_request_id, 'name': context.function_name,\
         'left': context.get_remaining_time_in_millis(), 'arn': context.invoked_function_arn}\n    \
         if event['rawPath'] == '/plain': return 'plain'\n    \
         if event['rawPath'] == '/binary': return {'statusCode': 200, 'body': 'AP8=', 'isBase64Encoded': True}\n    \
         if event['rawPath'] == '/bad': return {'statusCode': 200, 'body': '?', 'isBase64Encoded': True}\n    \
         return {'statusCode': '201', 'headers': {'X-A': 'b'}, 'cookies': ['c=d'], 'body': json.dumps({'ok': True})}\n",
    );
    let mut instance = zygote.fork();
    let request = |path| RequestHead {
        path,
        query: "a=1&b=2&a=3",
        deadline_unix_ns: u64::MAX / 2,
        headers: vec![
            ("host", b"example.org"),
            ("cookie", b"k=v; l=w"),
            ("x-forwarded-for", b"10.1.2.3, 10.0.0.1"),
        ],
        ..post("application/json")
    };
    let shape = instance.call(&request("/shape"), "{\"é\":1}".as_bytes());
    let text = shape.text();
    for part in [
        r#""version":"2.0""#,
        r#""rawQueryString":"a=1&b=2&a=3""#,
        r#""queryStringParameters":{"a":"1,3","b":"2"}"#,
        r#""cookies":["k=v","l=w"]"#,
        r#""http":{"method":"POST","path":"/shape","protocol":"HTTP/1.1","sourceIp":"10.1.2.3","userAgent":""}"#,
        r#""requestId":"call-1""#,
        r#""body":"{\"\u00e9\":1}""#,
        r#""isBase64Encoded":false"#,
        r#""id":"call-1","name":"under-test""#,
        r#""arn":"arn:spry:lambda:local:0:function:under-test""#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let binary = instance.call(&request("/shape"), b"\xff\x00");
    let text = binary.text();
    assert!(text.contains(r#""body":"/wA=""#) && text.contains(r#""isBase64Encoded":true"#), "{text}");
    let made = instance.call(&request("/other"), b"");
    assert_eq!((made.status, made.text()), (201, r#"{"ok": true}"#));
    assert_eq!((made.header("x-a"), made.header("set-cookie")), (Some("b"), Some("c=d")));
    assert_eq!(instance.call(&request("/binary"), b"").body, [0, 255]);
    assert_eq!(instance.call(&request("/plain"), b"").text(), "plain");
    assert!(instance.call(&request("/bad"), b"").failed().contains("not base64"));
}

#[test]
fn an_annotated_handler_gets_the_request_as_it_came() {
    let source = "kept = []\n\
         def main(request: spry.Request):\n    \
         if request.path == '/echo': return request.body\n    \
         if request.path == '/typed': return spry.Response(request.body, headers={'content-type': 'image/png'})\n    \
         if request.path == '/keep': kept.append(request.body); return 'kept'\n    \
         if request.path == '/late': return bytes(kept[0])\n    \
         if request.path == '/write': request.body[0] = 1\n    \
         if request.path == '/slice': kept.append(request.body[1:]); return request.body[1:3]\n    \
         return {'method': request.method, 'query': request.query, 'params': request.params, 'headers': request.headers,\
         'text': request.text(), 'id': request.call_id, 'len': len(request.body), 'left': request.remaining() > 1e9}\n";
    for import in ["import spry\n", "from __future__ import annotations\nimport spry\n"] {
        let zygote = load(&format!("{import}{source}"));
        let mut instance = zygote.fork();
        let mut ask = |path, body: &[u8]| {
            let headers = vec![("x-a", &b"1"[..]), ("x-a", b"\xe9"), ("accept", b"*/*")];
            let head = RequestHead { path, query: "q=1", headers, deadline_unix_ns: u64::MAX, ..post("x") };
            instance.call(&head, body)
        };
        assert_eq!(
            ask("", b"text").text(),
            r#"{"method":"POST","query":"q=1","params":{"q":"1"},"headers":{"x-a":"1, \u00e9","accept":"*/*"},"text":"text","id":"call-1","len":4,"left":true}"#
        );
        let echo = ask("/echo", b"\x00\x01\xff");
        assert!(echo.passed && echo.body == b"\x00\x01\xff");
        let typed = ask("/typed", b"\x89PNG");
        assert_eq!((typed.header("content-type"), &typed.body[..]), (Some("image/png"), &b"\x89PNG"[..]));
        assert_eq!(ask("/keep", b"secret").text(), "kept");
        assert!(
            ask("/late", b"").failed().starts_with("ValueError: operation forbidden on released memoryview")
        );
        assert!(ask("/write", b"x").failed().starts_with("TypeError: cannot modify read-only memory"));
        assert_eq!(ask("/slice", b"abcd").body, b"bc");
    }
}

#[test]
fn handlers_without_parameters_methods_and_coroutines() {
    for (source, answer) in [
        ("def main():\n    return 'none'\n", "none"),
        ("def main(params=None):\n    return str(params)\n", "{}"),
        ("def main(params, verbose=False):\n    return str(params)\n", "{}"),
        (
            "import asyncio\nasync def main(params):\n    await asyncio.sleep(0)\n    return 'async'\n",
            "async",
        ),
        ("class A:\n    def m(self, params):\n        return 'method'\nmain = A().m\n", "method"),
        ("class A:\n    def __call__(self, params):\n        return 'object'\nmain = A()\n", "object"),
        (
            "import functools\ndef f(a, params):\n    return a\nmain = functools.partial(f, 'partial')\n",
            "partial",
        ),
        ("def main(event=None, context=None):\n    return context.function_name\n", "under-test"),
    ] {
        let zygote = load(source);
        assert_eq!(call(&mut zygote.fork(), "").text(), answer, "{source}");
    }
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir(dir.path().join("package")).expect("mkdir");
    fs::write(dir.path().join("package/__init__.py"), "").expect("write");
    fs::write(
        dir.path().join("package/module.py"),
        "from helper import answer\nclass A:\n    run = staticmethod(lambda p: answer)\n",
    )
    .expect("write");
    fs::write(dir.path().join("helper.py"), "answer = 'from a package'\n").expect("write");
    let zygote = Zygote::python_at(dir.path(), "package.module:A.run").expect("load");
    assert_eq!(call(&mut zygote.fork(), "").text(), "from a package");
}

#[test]
fn broken_code_is_refused_with_the_interpreters_words() {
    let message = refused("def main(params)\n    pass\n");
    assert!(message.starts_with("SyntaxError: ") && message.contains("function.py\", line 1"), "{message}");
    let message = refused("import nothing_of_that_name\ndef main(p): pass\n");
    assert!(
        message.starts_with("ModuleNotFoundError: No module named 'nothing_of_that_name'\nTraceback"),
        "{message}"
    );
    assert!(
        message.contains("function.py\", line 1, in <module>") && !message.contains("importlib"),
        "{message}"
    );
    let message = refused("x = 1/0\ndef main(p): pass\n");
    assert!(message.starts_with("ZeroDivisionError: division by zero\nTraceback"), "{message}");
    assert!(refused("raise SystemExit(3)\n").starts_with("SystemExit: 3\nTraceback"));
    let message = refused("def other(p): pass\n");
    assert!(message.contains("has no function 'main' (it has other)"), "{message}");
    assert!(refused("main = 5\n").contains("is a int, not a function"));
    assert!(refused("def main(a, b, c): pass\n").contains("wants a, b, c"));
    assert!(refused("def main(*, key): pass\n").contains("wants key"));
    let dir = tempfile::tempdir().expect("tempdir");
    let missing = Zygote::python_at(dir.path(), "nowhere:main").err().expect("refused");
    assert!(missing.contains("there is no module 'nowhere'") && !missing.contains("Traceback"), "{missing}");
    let shapeless = Zygote::python_at(dir.path(), "nowhere").err().expect("refused");
    assert!(shapeless.contains("\"module:function\""), "{shapeless}");
    let message = refused(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='refresher', daemon=True).start()\n\
         def main(p): pass\n",
    );
    assert!(message.contains("starts a thread (refresher)") && message.contains("first called"), "{message}");
}

#[test]
fn output_of_every_kind_is_in_the_pipe_when_the_answer_is_sent() {
    let zygote = load(
        "import sys, os, ctypes, subprocess\nprint('while loading')\n\
         def main(params):\n    \
         how = params['how']\n    \
         if how == 'print': print('out', end=''); print('err', end='', file=sys.stderr)\n    \
         if how == 'c': ctypes.CDLL(None).printf(b'from c')\n    \
         if how == 'write': os.write(1, b'raw')\n    \
         if how == 'child': subprocess.run(['echo', 'child'], check=True)\n    \
         if how == 'replaced': sys.stdout = open(1, 'w', closefd=False); print('replaced', end='')\n    \
         return how\n",
    );
    assert_eq!(zygote.log(), "while loading\n");
    let mut instance = zygote.fork();
    let mut ask = |how: &str| {
        let answer = call(&mut instance, &format!("{{\"how\": \"{how}\"}}"));
        assert_eq!(answer.text(), how);
        (answer.held, instance.out() + &instance.err())
    };
    assert_eq!(ask("nothing"), (false, String::new()));
    assert_eq!(ask("print"), (true, "outerr".to_owned()));
    assert_eq!(ask("c"), (true, "from c".to_owned()));
    assert_eq!(ask("write"), (true, "raw".to_owned()));
    assert_eq!(ask("child"), (true, "child\n".to_owned()));
    assert_eq!(ask("replaced"), (true, "replaced".to_owned()));
    assert_eq!(ask("nothing"), (false, String::new()));
    assert_eq!(zygote.log(), "", "nothing of it reached the zygote's log");
}

#[test]
fn exit_really_ends_the_instance() {
    let zygote = load("import sys\ndef main(params):\n    print('bye')\n    sys.exit(params['code'])\n");
    for (code, status) in [("3", 3), ("null", 0), ("\"told why\"", 1)] {
        let mut instance = zygote.fork();
        let mut frame = Vec::new();
        post("application/json").encode(&mut frame).expect("encode");
        frame.extend_from_slice(format!("{{\"code\": {code}}}").as_bytes());
        instance.send(&frame, None);
        assert!(instance.answer().is_none());
        assert!(matches!(instance.wait(), WaitStatus::Exited(_, is) if is == status));
        assert_eq!(instance.out(), "bye\n");
        assert_eq!(instance.err(), if status == 1 { "told why\n" } else { "" });
    }
}

#[test]
fn forks_run_pythons_own_hooks_and_differ_in_their_random_numbers() {
    let zygote = load(
        "import os, random, threading\nlog = []\n\
         os.register_at_fork(before=lambda: log.append('before'), after_in_parent=lambda: log.append('parent'),\
         after_in_child=lambda: log.append('child'))\n\
         def main(params):\n    \
         found = []\n    \
         thread = threading.Thread(target=lambda: found.append(1)); thread.start(); thread.join()\n    \
         return {'log': log, 'random': random.random(), 'urandom': os.urandom(8).hex(), 'threads': found,\
         'alive': threading.active_count(), 'pid': os.getpid()}\n",
    );
    let texts: Vec<String> = (0..3)
        .map(|_| {
            let mut instance = zygote.fork();
            let text = call(&mut instance, "").text().to_owned();
            assert!(text.contains(&format!("\"pid\":{}", instance.pid)), "{text}");
            assert!(text.contains(r#""threads":[1],"alive":1"#), "a thread in a call runs and ends: {text}");
            text
        })
        .collect();
    assert!(texts[0].contains(r#""log":["before","child"]"#), "{}", texts[0]);
    assert!(
        texts[2].contains(r#""log":["before","parent","before","parent","before","child"]"#),
        "{}",
        texts[2]
    );
    let random =
        |text: &str| text.split(r#""random":"#).nth(1).expect("random").split(',').next().map(str::to_owned);
    assert_ne!(random(&texts[0]), random(&texts[1]));
    assert_ne!(random(&texts[1]), random(&texts[2]));
}

/// Without hooks that the zygote would have to call, too, CPython's own work after a fork isn't done: nothing may show that.
#[test]
fn forks_with_hooks_for_the_new_process_alone() {
    let zygote = load(
        "import _thread, logging, os, queue, random, signal, threading, weakref\nlog = []\n\
         ready = threading.Event(); lock = threading.RLock()\n\
         def fails(): raise ValueError('told')\n\
         os.register_at_fork(after_in_child=fails)\n\
         os.register_at_fork(after_in_child=lambda: log.append('child'))\n\
         def main(params):\n    \
         found = queue.Queue(); before = threading.get_ident()\n    \
         def work():\n        \
         with lock: logging.getLogger().setLevel(20); ready.set(); found.put(threading.current_thread() is not threading.main_thread())\n    \
         with lock: thread = threading.Thread(target=work); thread.start(); early = ready.is_set()\n    \
         thread.join(); ready.clear()\n    \
         child = os.fork()\n    \
         if child == 0: os._exit(7)\n    \
         signal.signal(signal.SIGUSR1, lambda *_: log.append('signal')); signal.raise_signal(signal.SIGUSR1)\n    \
         return {'log': log, 'random': random.random(), 'thread': [found.get(), early],\
         'ids': threading.main_thread().native_id == os.getpid() == threading.get_native_id(),\
         'main': threading.current_thread() is threading.main_thread() and threading.main_thread().ident == before,\
         'alive': threading.active_count(), 'child': os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n",
    );
    let randoms: Vec<String> = (0..3)
        .map(|_| {
            let mut instance = zygote.fork();
            let text = call(&mut instance, "").text().to_owned();
            let all = r#""thread":[true,false],"ids":true,"main":true,"alive":1,"child":7}"#;
            assert!(text.starts_with(r#"{"log":["child","signal"],"#), "{text}");
            assert!(text.ends_with(all), "{text}");
            assert!(
                instance.err().contains("ValueError: told"),
                "a hook that fails is told, and the next is called"
            );
            text.split(r#""random":"#).nth(1).expect("random").split(',').next().expect("random").to_owned()
        })
        .collect();
    assert_ne!(randoms[0], randoms[1]);
    assert_ne!(randoms[1], randoms[2]);
}

/// A zygote has itself answer once, so that its instances find done what it can do for them.
#[test]
fn what_a_zygote_rehearses_is_none_of_the_functions_code() {
    for parameters in ["", "params", "event, context", "request: spry.Request"] {
        let zygote = load(&format!(
            "import os, spry\nseen = []\nos.register_at_fork(after_in_child=lambda: seen.append('forked'))\n\
             def main({parameters}):\n    seen.append('called')\n    print(seen)\n    return seen\n",
        ));
        for _ in 0..2 {
            let mut instance = zygote.fork();
            assert_eq!(call(&mut instance, "{}").text(), r#"["forked","called"]"#, "{parameters}");
            assert_eq!(instance.out(), "['forked', 'called']\n", "{parameters}");
        }
    }
}

/// A zygote gives its generators new states when nobody waits for a fork; whom it has no time for does it by itself.
#[test]
fn forks_that_are_asked_for_at_once_differ_in_their_random_numbers() {
    let zygote = load("import random\ndef main(): return str(random.getrandbits(128))\n");
    let mut drawn: Vec<String> = (0..8).map(|_| call(&mut zygote.fork(), "").text().to_owned()).collect();
    drawn.extend(zygote.fork_at_once(8).iter_mut().map(|instance| call(instance, "").text().to_owned()));
    let different: std::collections::BTreeSet<&String> = drawn.iter().collect();
    assert_eq!(different.len(), drawn.len(), "{drawn:?}");
}

/// A function's own thread runs while its instance waits for the next call.
#[test]
fn background_threads_run_between_calls() {
    let zygote = load(
        "import threading, time\nticks = []\nready = threading.Event()\n\
         def tick():\n    ready.wait(); ticks.append(1)\n\
         def main(params):\n    \
         if params.get('start'): threading.Thread(target=tick, daemon=True).start(); ready.set(); return 'started'\n    \
         while not ticks: time.sleep(0.001)\n    \
         return 'ticked'\n",
    );
    let mut instance = zygote.fork();
    assert_eq!(call(&mut instance, "{\"start\": 1}").text(), "started");
    assert_eq!(call(&mut instance, "{}").text(), "ticked");
}

#[test]
fn state_stays_in_its_instance() {
    let zygote =
        load("count = 0\ndef main(params):\n    global count\n    count += 1\n    return str(count)\n");
    let (mut a, mut b) = (zygote.fork(), zygote.fork());
    assert_eq!(call(&mut a, "").text(), "1");
    assert_eq!(call(&mut a, "").text(), "2");
    assert_eq!(call(&mut b, "").text(), "1");
}
