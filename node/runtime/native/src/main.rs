//! The native runtime: a program that loads a function's shared library and serves it.
//!
//! spryd carries this program inside itself and starts one per native function. `library` loads the `.so`
//! and checks it, `calls` is the runtime's half of the C ABI in `spry.h`.

mod calls;
mod library;

use std::path::Path;

use spry_runtime::{Failure, Handler, LoadError, Request, Response};
use spry_wire::control::Init;

use crate::library::Library;

/// A loaded library, and memory for the requests' lists.
#[derive(Debug)]
struct Native {
    library: Library,
    lists: calls::Lists,
}

impl Handler for Native {
    fn runtime() -> String {
        format!("spry native {} (ABI {})", env!("CARGO_PKG_VERSION"), spry_fn::abi::ABI_VERSION)
    }

    fn load(init: &Init) -> Result<Self, LoadError> {
        let library = Library::load(&Path::new(&init.code).join(&init.handler))
            .map_err(|error| LoadError::new(error.to_string()))?;
        Ok(Self { library, lists: calls::Lists::default() })
    }

    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) -> Result<(), Failure> {
        calls::call(self.library.handle, &mut self.lists, request, response)
    }
}

fn main() {
    spry_runtime::run::<Native>()
}
