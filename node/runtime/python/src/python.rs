//! The Python handler: loaded in the zygote, called in the instances.

use std::ffi::CString;

use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use spry_runtime::{Failure, Handler, LoadError, Request, Response, Side};
use spry_wire::control::Init;
use spry_wire::layer::{Absent, Imports, LayerWish};

use crate::answer::Writer;
use crate::capi::Serving;
use crate::json::Json;
use crate::{CallError, arguments, capi};

const AUTHORS_MODULE: &str = include_str!("spry.py");
const WATCH: &str = include_str!("watch.py");
const GLUE: &str = include_str!("glue.py");
const GLUE_NAME: &str = "_spry_glue";

/// How the handler wants to be called.
#[derive(Debug, Clone, Copy)]
enum Convention {
    Nothing,
    Params,
    Event,
    Request,
}

/// A loaded Python function.
#[derive(Debug)]
pub(crate) struct Python {
    function: Py<PyAny>,
    convention: Convention,
    writer: Writer,
    glue: Py<PyModule>,
    request_type: Py<PyAny>,
    pickle_buffer: Py<PyAny>,
    /// stdout and stderr as they were when the function had been loaded.
    streams: [Stream; 2],
    /// The names in module `sys`.
    in_sys: Py<PyDict>,
    /// What is to be called after each rewinding; `None`: it would do nothing.
    rewound: Option<Py<PyAny>>,
    /// What is to be called in a new instance; `None`: CPython's own work after a fork.
    renewals: Option<Renewals>,
    /// Stands in for the function where none of its code may run.
    nobody: Py<PyAny>,
    /// What gives the generators of random numbers new states.
    seed: Py<PyAny>,
    /// The generators' states are for the next instance alone.
    seeded: bool,
}

/// What is called in a new instance.
#[derive(Debug)]
struct Renewals {
    /// The runtime's own, which can be called again and in the zygote.
    own: Vec<Py<PyAny>>,
    /// What the function and its libraries have registered.
    functions: Vec<Py<PyAny>>,
}

#[derive(Debug)]
struct Stream {
    /// Interned, which finds it without making a string.
    name: Py<PyString>,
    object: Py<PyAny>,
    flush: Py<PyAny>,
}

impl Python {
    fn new(py: pyo3::Python<'_>, init: &Init, glue: &Bound<'_, PyModule>) -> PyResult<Self> {
        let (function, how): (Py<PyAny>, String) =
            glue.call_method1("load", (&init.code, &init.handler, &init.name, &init.packages))?.extract()?;
        let convention = match how.as_str() {
            "none" => Convention::Nothing,
            "event" => Convention::Event,
            "request" => Convention::Request,
            _ => Convention::Params,
        };
        let authors = py.import("spry")?;
        let sys = py.import("sys")?;
        let stream = |name: &'static str| -> PyResult<Stream> {
            let name = PyString::intern(py, name);
            let object = sys.getattr(&name)?;
            let flush = object.getattr("flush")?.unbind();
            Ok(Stream { name: name.unbind(), object: object.unbind(), flush })
        };
        Ok(Self {
            function,
            convention,
            writer: Writer::new(Json::prepare(py, glue)?, authors.getattr("Response")?.unbind()),
            glue: glue.clone().unbind(),
            request_type: authors.getattr("Request")?.unbind(),
            pickle_buffer: py.import("_pickle")?.getattr("PickleBuffer")?.unbind(),
            streams: [stream("stdout")?, stream("stderr")?],
            rewound: match glue.call_method0("renews")?.extract()? {
                true => Some(glue.getattr("rewound")?.unbind()),
                false => None,
            },
            renewals: glue
                .call_method0("renewals")?
                .extract::<Option<_>>()?
                .map(|(own, functions)| Renewals { own, functions }),
            nobody: glue.getattr("nobody")?.unbind(),
            seed: glue.getattr("seed")?.unbind(),
            seeded: false,
            in_sys: sys.dict().unbind(),
        })
    }

    fn invoke(
        &self,
        function: &Bound<'_, PyAny>,
        request: &Request<'_>,
        serving: &Serving<'_, '_>,
    ) -> Result<(), CallError> {
        let py = function.py();
        let pickle_buffer = self.pickle_buffer.bind(py);
        let answer = |value: &Bound<'_, PyAny>, body: Option<&Bound<'_, PyAny>>| {
            self.writer.write(value, body, &mut serving.response())
        };
        match self.convention {
            Convention::Nothing => answer(&function.call0()?, None),
            Convention::Params => {
                let params = arguments::params(py, request, self.writer.json, self.glue.bind(py))?;
                answer(&function.call1((params,))?, None)
            }
            Convention::Event => {
                let (raw, views) = arguments::raw(py, request, true, pickle_buffer)?;
                let made = self.glue.bind(py).call_method1("event", raw);
                views.release(request);
                let (event, context): (Bound<'_, PyAny>, Bound<'_, PyAny>) = made?.extract()?;
                let mut value = function.call1((event, context))?;
                if value.cast::<PyDict>().is_ok_and(|dict| dict.contains("statusCode").unwrap_or(false)) {
                    value = self.glue.bind(py).call_method1("aws_response", (value,))?;
                }
                answer(&value, None)
            }
            Convention::Request => {
                let (raw, views) = arguments::raw(py, request, false, pickle_buffer)?;
                let outcome = self.request_type.bind(py).call1(raw).map_err(CallError::from);
                let outcome = outcome.and_then(|argument| {
                    let value = function.call1((&argument,))?;
                    // What the request calls its body, if it has made one: a list's is made when it is asked for.
                    let body = argument.getattr("_body")?;
                    answer(&value, Some(&body).filter(|body| !body.is_none()))
                });
                views.release(request);
                outcome
            }
        }
    }

    /// Answers a request by what `called` names.
    fn serve(
        &mut self,
        called: impl FnOnce(&Self) -> &Py<PyAny>,
        request: &Request<'_>,
        response: &mut Response<'_>,
    ) -> Result<(), Failure> {
        pyo3::Python::attach(|py| {
            let function = called(self).bind(py);
            let outcome =
                Serving::run(py, response, |serving| match self.invoke(function, request, serving) {
                    // In a chain it isn't the client who has sent this, and the next step could do nothing with a refusal.
                    Err(CallError::BadRequest(message)) if !request.in_chain() => {
                        self.writer.refuse(py, &message, request.call_id(), &mut serving.response())
                    }
                    outcome => outcome,
                });
            outcome.map_err(|error| self.failure(py, error))
        })
    }

    /// A failed call in words. Ends the process when the function asked for that.
    fn failure(&mut self, py: pyo3::Python<'_>, error: CallError) -> Failure {
        match error {
            CallError::Raised(error) if error.is_instance_of::<PySystemExit>(py) => {
                let code = self.glue.bind(py).call_method1("exit_code", (error.value(py),));
                let code = code.and_then(|code| code.extract()).unwrap_or(1);
                self.flush();
                capi::exit(code)
            }
            CallError::Raised(error) => Failure::new(describe(self.glue.bind(py), &error)),
            CallError::BadRequest(message) | CallError::Nonsense(message) => Failure::new(message),
            CallError::Response(error) => Failure::from(error),
        }
    }
}

impl Handler for Python {
    fn runtime() -> String {
        let version = pyo3::Python::version_str();
        format!("CPython {}", version.split(' ').next().unwrap_or_default())
    }

    fn load(init: &Init) -> Result<Self, LoadError> {
        pyo3::Python::attach(|py| {
            let glue = own_modules(py)?;
            let loaded = Self::new(py, init, &glue);
            let loaded = loaded.map_err(|error| LoadError::new(describe(&glue, &error)))?;
            loaded.writer.json.warm(py);
            Ok(loaded)
        })
    }

    fn imports(&self, init: &Init) -> Imports {
        pyo3::Python::attach(|py| {
            let told = self.glue.bind(py).call_method1("imports", (&init.code,));
            // What a function has done to `sys.modules` is no reason not to run it.
            let (modules, elsewhere) = told.and_then(|told| told.extract()).unwrap_or_default();
            Imports { modules, elsewhere }
        })
    }

    fn preload(wish: &LayerWish) -> Result<(Imports, Absent), LoadError> {
        pyo3::Python::attach(|py| {
            let glue = own_modules(py)?;
            let made = glue.call_method1("preload", (&wish.modules, &wish.packages));
            let made = made.and_then(|made| made.extract());
            let (imported, modules, distributions, all, walked) =
                made.map_err(|error| LoadError::new(describe(&glue, &error)))?;
            let imports = Imports { modules: imported, elsewhere: false };
            Ok((imports, Absent { modules, distributions, all, walked }))
        })
    }

    fn around_layer(go_on: &mut dyn FnMut() -> Side) -> Side {
        pyo3::Python::attach(|py| capi::around_fork(py, go_on))
    }

    fn around_fork(&mut self, clone: &mut dyn FnMut() -> Side) -> Side {
        self.flush();
        pyo3::Python::attach(|py| {
            let Some(renewals) = &self.renewals else { return capi::around_fork(py, clone) };
            let seeded = std::mem::take(&mut self.seeded);
            let side = clone();
            if side == Side::Child {
                let seed = if seeded { None } else { Some(&self.seed) };
                for call in seed.into_iter().chain(&renewals.own).chain(&renewals.functions) {
                    // As for `rewound`.
                    let _renewed = call.bind(py).call0();
                }
            }
            side
        })
    }

    fn before_fork(&mut self) {
        if self.renewals.is_some() && !self.seeded {
            self.seeded = pyo3::Python::attach(|py| self.seed.bind(py).call0().is_ok());
        }
    }

    fn rehearse(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure> {
        pyo3::Python::attach(|py| {
            for call in self.renewals.iter().flat_map(|renewals| &renewals.own) {
                let _renewed = call.bind(py).call0();
            }
        });
        self.serve(|python| &python.nobody, request, response)
    }

    fn rewound(&mut self) {
        let Some(rewound) = &self.rewound else { return };
        pyo3::Python::attach(|py| {
            // Only a function that has taken the runtime's own code apart makes it fail: its numbers aren't random then.
            let _renewed = rewound.bind(py).call0();
        });
    }

    fn threads(&self) -> Vec<String> {
        pyo3::Python::attach(|py| self.glue.bind(py).call_method0("threads")?.extract()).unwrap_or_default()
    }

    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure> {
        self.serve(|python| &python.function, request, response)
    }

    fn flush(&mut self) {
        pyo3::Python::attach(|py| {
            for stream in &self.streams {
                // A closed stream has nothing to write, and nobody to tell.
                let _closed = stream.flush.bind(py).call0();
                if let Ok(Some(now)) = self.in_sys.bind(py).get_item(&stream.name)
                    && !now.is(stream.object.bind(py))
                {
                    let _not_a_stream = now.call_method0("flush");
                }
            }
        });
    }
}

/// The runtime's own modules, which are there already in a process that was a layer.
fn own_modules(py: pyo3::Python<'_>) -> Result<Bound<'_, PyModule>, LoadError> {
    let own = |error: PyErr| LoadError::new(format!("the runtime's own Python code failed: {error}"));
    let there = py.import("sys").and_then(|sys| sys.getattr("modules"));
    if let Ok(glue) = there.and_then(|modules| modules.get_item(GLUE_NAME)) {
        return glue.cast_into().map_err(|error| own(error.into()));
    }
    module(py, AUTHORS_MODULE, "<spry>", "spry").map_err(own)?;
    module(py, WATCH, "<spry watch>", "_spry_watch").map_err(own)?;
    module(py, GLUE, "<spry glue>", GLUE_NAME).map_err(own)
}

/// Makes a module of source text and puts it where `import` finds it.
fn module<'py>(
    py: pyo3::Python<'py>,
    source: &str,
    file: &str,
    name: &str,
) -> PyResult<Bound<'py, PyModule>> {
    let [source, file, c_name] = [source, file, name].map(|text| CString::new(text).expect("no zero byte"));
    let module = PyModule::from_code(py, &source, &file, &c_name)?;
    py.import("sys")?.getattr("modules")?.set_item(name, &module)?;
    Ok(module)
}

fn describe(glue: &Bound<'_, PyModule>, error: &PyErr) -> String {
    // Before CPython 3.12 a raised exception doesn't know its own traceback.
    let arguments = (error.value(glue.py()), error.traceback(glue.py()));
    let described = glue.call_method1("describe", arguments).and_then(|text| text.extract());
    described.unwrap_or_else(|_| error.to_string())
}
