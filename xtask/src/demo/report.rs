//! The demo's table: a line a call.

use std::time::Duration;

use super::http::Answer;
use super::timing::ServerTiming;

/// Characters of a body that are shown.
const VIEW: usize = 58;
/// Bytes of a line of steps.
const LINE: usize = 120;

/// Prints the table's head.
pub(crate) fn print_head() {
    println!(
        "\n{:<26} {:>6} {:<6} {:>8} {:>8} {:>9} {:>9}  what came back",
        "call", "status", "start", "queue ms", "start ms", "exec ms", "client ms"
    );
}

/// Prints one call.
pub(crate) fn print_call(name: &str, answer: &Answer, took: Duration) {
    let timing = answer.header("server-timing").map(ServerTiming::parse).unwrap_or_default();
    let kind = answer.header("x-spry-start").or(timing.kind()).unwrap_or("-");
    let phase = |name| timing.duration_ms(name).map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    println!(
        "{name:<26} {:>6} {kind:<6} {:>8} {:>8} {:>9} {:>9.2}  {}",
        answer.status,
        phase("queue"),
        phase("start"),
        phase("exec"),
        took.as_secs_f64() * 1e3,
        view(&answer.body)
    );
}

/// Prints where the time of a chain's call went: its steps, and the ways between them, in milliseconds.
pub(crate) fn print_steps(answer: &Answer) {
    let timing = answer.header("server-timing").map(ServerTiming::parse).unwrap_or_default();
    let mut line = String::new();
    for (step, ms) in timing.described() {
        let entry = format!("{step} {ms:.3}");
        if line.len() + entry.len() > LINE {
            println!("    {line}");
            line.clear();
        }
        line.push_str(if line.is_empty() { "" } else { " · " });
        line.push_str(&entry);
    }
    println!("    {line}");
}

/// A body in a few words.
fn view(body: &[u8]) -> String {
    if let Some((width, height)) = jpeg_size(body) {
        return format!("JPEG, {width} x {height}, {:.1} KiB", body.len() as f64 / 1024.0);
    }
    match std::str::from_utf8(body) {
        Ok(text) => {
            let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let cut: String = line.chars().take(VIEW).collect();
            if cut.len() < line.len() { format!("{cut}… ({} bytes)", body.len()) } else { cut }
        }
        Err(_) => format!("{} bytes", body.len()),
    }
}

/// Width and height from a JPEG's frame header; `None`: not a JPEG.
pub(crate) fn jpeg_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let mut at = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let [0xff, marker, length @ ..] = at else { return None };
        let length = usize::from(u16::from_be_bytes([*length.first()?, *length.get(1)?]));
        let segment = at.get(4..2 + length)?;
        // Start of frame, all kinds; C4, C8 and CC are tables.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let [_, h1, h2, w1, w2, ..] = segment else { return None };
            return Some((u16::from_be_bytes([*w1, *w2]), u16::from_be_bytes([*h1, *h2])));
        }
        at = at.get(2 + length..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JPEG: &[u8] =
        &[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xc0, 0, 11, 8, 0x01, 0x02, 0x03, 0x04, 1, 1, 0x11, 0];

    #[test]
    fn a_jpeg_tells_its_size() {
        assert_eq!(jpeg_size(JPEG), Some((0x0304, 0x0102)));
        for end in 0..17 {
            assert_eq!(jpeg_size(&JPEG[..end]), None, "cut at {end}");
        }
        assert_eq!(jpeg_size(b"{\"words\": 3}"), None);
    }

    #[test]
    fn bodies_are_shown_short() {
        assert_eq!(view(b"{\"a\":\n 1}"), "{\"a\": 1}");
        assert_eq!(view(JPEG), "JPEG, 772 x 258, 0.0 KiB");
        assert_eq!(view(&[0x80; 9]), "9 bytes");
        let long = view("ä".repeat(100).as_bytes());
        assert!(long.ends_with("… (200 bytes)"), "{long}");
    }
}
