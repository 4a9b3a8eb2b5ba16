//! A function that fails in every way that Rust offers, chosen by the request's path. The runtime's tests call it.

use std::io::Write;

use spry_fn::{Error, Request, Response};

fn faults(request: Request<'_>) -> Result<Response<'_>, Error> {
    match request.path() {
        "/panic" => panic!("no such colour: {}", request.query()),
        "/error" => Ok(Response::text(std::fs::read_to_string("/nowhere")?)),
        "/status" => Ok(Response::text("").status(99)),
        "/header" => Ok(Response::text("").header("a b", b"c".as_slice())),
        "/print" => {
            print!("unfinished line");
            eprint!("to stderr");
            Ok(Response::text("printed"))
        }
        "/buffer" => {
            let mut answer = request.buffer(8)?;
            let second = request.buffer(8).expect_err("one at a time");
            write!(answer, "12345678")?;
            let full = answer.write(b"9").expect_err("full");
            answer.resize(4)?;
            answer.reverse();
            assert!(answer.resize(9).is_err());
            Ok(Response::buffer(answer)
                .header("x-second", second.to_string().into_bytes())
                .header("x-full", full.to_string().into_bytes()))
        }
        "/too-large" => request.buffer(1 << 40).map(Response::buffer),
        "/headers" => {
            let names: Vec<&str> = request.headers().map(|(name, _)| name).collect();
            Ok(Response::json(format!("{names:?}")))
        }
        "/parts" => {
            let parts: Vec<(&str, &[u8])> = request.parts().collect();
            assert_eq!(request.body().as_ptr(), request.body().as_ptr(), "joined once");
            Ok(Response::text(format!("{parts:?} {:?}", String::from_utf8_lossy(request.body()))))
        }
        "/emit" => {
            // A buffer that is being written to stays whole.
            let mut answer = request.buffer(256)?;
            write!(answer, "before ")?;
            request.emit("page", "text/plain", "one")?;
            request.emit("page", "", [2u8; 3])?;
            write!(answer, "after: {}", request.emit("Page", "", "").expect_err("a bad name"))?;
            Ok(Response::buffer(answer))
        }
        "/emit-alone" => Err(request.emit("page", "", "nobody").expect_err("not in a chain")),
        _ => Ok(Response::new(request.body()).status(404)),
    }
}

spry_fn::handler!(faults);
