//! The demo's calls: what is sent, and what must come back.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::http::{Answer, Client};
use super::node::Node;
use super::report;
use crate::failure::Failure;
use crate::setup::Photo;

/// A text that every Debian has.
const TEXT: &str = "/usr/share/common-licenses/GPL-3";
/// How often each call is made: the first one starts the instance, the others find it warm.
const TIMES: u32 = 4;
const WIDTH: u16 = 320;

/// Makes all calls; writes the thumbnail into `out`.
pub(crate) fn make(node: &Node, photo: &Photo, out: &Path) -> Result<(), Failure> {
    let text = read(Path::new(TEXT))?;
    let image = read(&photo.file)?;
    let (width, height) = report::jpeg_size(&image)
        .ok_or_else(|| wrong("the photograph", format!("{} is not a JPEG", photo.file.display())))?;
    println!("\nInput of wordcount: {TEXT}, {} bytes.", text.len());
    println!(
        "Input of thumbnail: {} ({width} x {height}, {} bytes): {}.",
        photo.file.display(),
        image.len(),
        photo.credit
    );
    println!("By hand: curl -d name=Ada http://{}/function/hello", node.address());
    report::print_head();
    let mut caller = Caller { client: node.client()? };

    let hello = caller.repeat("hello", "/function/hello", "application/json", br#"{"name": "Ada"}"#)?;
    expect_contains("hello", &hello, "Hello, Ada!")?;

    let words = caller.repeat("wordcount", "/function/wordcount?top=3", "text/plain", &text)?;
    let counted = String::from_utf8_lossy(&text).split_whitespace().count();
    expect_contains("wordcount", &words, &format!("\"words\": {counted}"))?;

    let path = format!("/function/thumbnail?width={WIDTH}");
    let thumbnail = caller.repeat("thumbnail", &path, "image/jpeg", &image)?;
    match report::jpeg_size(&thumbnail.body) {
        Some((WIDTH, _)) => {}
        other => return Err(wrong("thumbnail", format!("the answer's size is {other:?}"))),
    }

    // What errors look like.
    caller.once("thumbnail of a text", "/function/thumbnail", "image/jpeg", &text, 400)?;
    caller.once("no such function", "/function/nobody", "text/plain", b"", 404)?;

    let file = out.join("thumbnail.jpg");
    fs::write(&file, &thumbnail.body).map_err(|source| Failure::io("write", &file, source))?;
    println!("\nThe thumbnail is in {} (the only file that stays).", file.display());
    Ok(())
}

struct Caller {
    client: Client,
}

impl Caller {
    /// The same call several times; the last answer is returned, and all must be 200 with the same body.
    fn repeat(&mut self, name: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer, Failure> {
        let first = self.once(name, path, kind, body, 200)?;
        for _ in 1..TIMES {
            let next = self.once(name, path, kind, body, 200)?;
            if next.body != first.body {
                return Err(wrong("the same call twice", format!("{name} gave two different answers")));
            }
        }
        Ok(first)
    }

    fn once(
        &mut self,
        name: &str,
        path: &str,
        kind: &str,
        body: &[u8],
        status: u16,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let answer = self.client.call("POST", path, &[("Content-Type", kind)], body)?;
        report::print_call(name, &answer, started.elapsed());
        if answer.status != status {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(wrong("a call", format!("{name} answered {}, not {status}: {body}", answer.status)));
        }
        Ok(answer)
    }
}

fn expect_contains(name: &'static str, answer: &Answer, what: &str) -> Result<(), Failure> {
    let body = String::from_utf8_lossy(&answer.body);
    // Whether the runtime puts a space after a colon is its own business.
    let bare = |text: &str| text.replace(": ", ":");
    if bare(&body).contains(&bare(what)) {
        return Ok(());
    }
    Err(wrong(name, format!("`{what}` is not in the answer: {body}")))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|source| Failure::io("read", path, source))
}

fn wrong(what: &'static str, found: String) -> Failure {
    Failure::Expectation { what, found }
}
