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

/// An order whose right total is known.
const ORDER: &str = "examples/boutique/order.json";
const TOTAL: &str = r#""total":{"currency":"EUR","amount":"572.54"}"#;
/// How wide the chains make the photograph.
const CHAIN_WIDTH: u16 = 640;

/// Makes all calls; writes the small pictures into `out`.
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

    let marked = chains(&mut caller, &image)?;
    for (name, answer) in [("thumbnail.jpg", &thumbnail), ("photo.jpg", &marked)] {
        let file = out.join(name);
        fs::write(&file, &answer.body).map_err(|source| Failure::io("write", &file, source))?;
        println!("{} {}", if name == "thumbnail.jpg" { "\nFiles that stay:" } else { "and" }, file.display());
    }
    Ok(())
}

/// Calls the chains; the marked photograph.
fn chains(caller: &mut Caller, image: &[u8]) -> Result<Answer, Failure> {
    println!("\nChains; below each, where the time of its last call's steps went, in milliseconds.");
    report::print_head();
    let path = format!("/function/photo?width={CHAIN_WIDTH}");
    let marked = caller.repeat("photo", &path, "image/jpeg", image)?;
    report::print_steps(&marked);
    match report::jpeg_size(&marked.body) {
        Some((CHAIN_WIDTH, _)) => {}
        other => return Err(wrong("photo", format!("the answer's size is {other:?}"))),
    }
    let path = format!("/function/photo-python?width={CHAIN_WIDTH}");
    let python = caller.repeat("photo, one step in Python", &path, "image/jpeg", image)?;
    report::print_steps(&python);
    if python.body != marked.body {
        return Err(wrong("photo-python", "another picture than the native chain's".to_owned()));
    }
    let order = read(Path::new(ORDER))?;
    // Each confirmation has a number of its own, so no two are the same.
    let mut confirmation = caller.once("boutique", "/function/boutique", "application/json", &order, 200)?;
    for _ in 1..TIMES {
        confirmation = caller.once("boutique", "/function/boutique", "application/json", &order, 200)?;
    }
    report::print_steps(&confirmation);
    expect_contains("boutique", &confirmation, TOTAL)?;

    // The error names the step, and those after it didn't run.
    let failed = caller.once("photo of a text", "/function/photo", "image/jpeg", b"no picture", 500)?;
    expect_contains("photo of a text", &failed, r#""step":"decode""#)?;
    Ok(marked)
}

struct Caller {
    client: Client,
}

impl Caller {
    /// The same call several times; the last answer is returned, and all must be 200 with the same body.
    fn repeat(&mut self, name: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer, Failure> {
        let mut last = self.once(name, path, kind, body, 200)?;
        for _ in 1..TIMES {
            let next = self.once(name, path, kind, body, 200)?;
            if next.body != last.body {
                return Err(wrong("the same call twice", format!("{name} gave two different answers")));
            }
            last = next;
        }
        Ok(last)
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
    // Whether the runtime puts a space after a colon or a comma is its own business.
    let bare = |text: &str| text.replace(": ", ":").replace(", ", ",");
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
