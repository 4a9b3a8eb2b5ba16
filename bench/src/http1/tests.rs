//! The reader against well-formed, cut and hostile responses.

use proptest::prelude::*;

use super::*;

/// Feeds `bytes` in parts of `part` bytes; the outcome of the first response in them.
fn read(bytes: &[u8], part: usize) -> Result<Option<(Head, Vec<u8>, usize)>, ResponseError> {
    let mut reader = ResponseReader::default();
    let mut body = Vec::new();
    let mut before = 0;
    for slice in bytes.chunks(part.max(1)) {
        if let Some(taken) = reader.feed(slice, &mut body)? {
            return Ok(Some((reader.head().expect("a whole response has a head"), body, before + taken)));
        }
        before += slice.len();
    }
    Ok(None)
}

fn read_at_every_cut(bytes: &[u8]) -> Result<Option<(Head, Vec<u8>, usize)>, ResponseError> {
    let whole = read(bytes, bytes.len());
    for part in 1..bytes.len() {
        assert_eq!(read(bytes, part), whole, "in parts of {part}");
    }
    whole
}

#[test]
fn a_fixed_length() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Spry-Start: warm\r\n\r\nhelloHTTP/1.1";
    let (head, body, taken) = read_at_every_cut(bytes).unwrap().unwrap();
    assert_eq!((head.status, head.close, head.start), (200, false, Some(Start::Warm)));
    assert_eq!(body, b"hello");
    assert_eq!(taken, bytes.len() - 8);
}

#[test]
fn two_in_a_row_on_one_reader() {
    let mut reader = ResponseReader::default();
    let bytes =
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nb";
    let mut body = Vec::new();
    let first = reader.feed(bytes, &mut body).unwrap().unwrap();
    assert_eq!((reader.head().unwrap().status, reader.is_fresh()), (200, true));
    assert_eq!(reader.feed(&bytes[first..], &mut body), Ok(Some(bytes.len() - first)));
    assert_eq!((reader.head().unwrap().status, body.as_slice()), (404, b"ab".as_slice()));
}

#[test]
fn chunks_with_extensions_and_trailers() {
    let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  5;x=y\r\nhello\r\nA\r\n, world! 1\r\n0\r\nSum: 1\r\n\r\n";
    let (_, body, taken) = read_at_every_cut(bytes).unwrap().unwrap();
    assert_eq!((body.as_slice(), taken), (b"hello, world! 1".as_slice(), bytes.len()));
}

#[test]
fn an_interim_response_comes_first() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    let (head, body, taken) = read_at_every_cut(bytes).unwrap().unwrap();
    assert_eq!((head.status, head.close, body.len(), taken), (204, true, 0, bytes.len()));
}

#[test]
fn without_a_length_it_lasts_until_the_connection_ends() {
    let mut reader = ResponseReader::default();
    let mut body = Vec::new();
    assert_eq!(reader.feed(b"HTTP/1.0 200 OK\r\n\r\nabc", &mut body), Ok(None));
    assert_eq!(reader.end_of_file(), Ok(()));
    assert_eq!((body.as_slice(), reader.head().unwrap().close), (b"abc".as_slice(), true));
}

#[test]
fn an_early_end_is_an_error() {
    let whole: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
    for cut in 0..whole.len() {
        let mut reader = ResponseReader::default();
        assert_eq!(reader.feed(&whole[..cut], &mut Vec::new()), Ok(None), "{cut}");
        assert_eq!(reader.end_of_file(), Err(ResponseError::Truncated), "{cut}");
        assert_eq!(reader.is_fresh(), cut == 0);
    }
}

#[test]
fn what_http_forbids_is_refused() {
    use ResponseError::{Chunk, Header, Length, StatusLine, TooLong};
    let chunked = |chunks: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let headers = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n");
    for (bytes, error) in [
        ("HTTP/2 200\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 20 OK\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 2000 OK\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 099 OK\r\n\r\n".to_owned(), StatusLine),
        ("\r\n\r\n".to_owned(), StatusLine),
        (headers("no colon"), Header),
        (headers(": no name"), Header),
        (headers("a: b\r\n folded: c"), Header),
        (headers("content length: 1"), Header),
        (headers("content-length: -1"), Length),
        (headers("content-length: "), Length),
        (headers("content-length: 1\r\ncontent-length: 2"), Length),
        (headers("content-length: 18446744073709551616"), Length),
        (headers("content-length: 1\r\ntransfer-encoding: chunked"), Length),
        (headers("transfer-encoding: gzip, chunked"), Length),
        (headers(&format!("a: {}", "x".repeat(HEAD_MAX))), TooLong(HEAD_MAX)),
        (chunked("\r\n"), Chunk),
        (chunked("-1\r\n"), Chunk),
        (chunked("x\r\n"), Chunk),
        (chunked("1\na"), Chunk),
        (chunked("1\r\nabcd"), TooLong(2)),
        (chunked("1\r\na\rbc"), TooLong(2)),
        (chunked("ffffffffffffffff\r\n"), Chunk),
        (chunked(&"0".repeat(CHUNK_LINE_MAX + 1)), TooLong(CHUNK_LINE_MAX)),
        (chunked(&format!("0\r\n{}", "a: b\r\n".repeat(HEAD_MAX / 6 + 1))), TooLong(HEAD_MAX)),
    ] {
        for part in [bytes.len(), 1000] {
            let start = &bytes[..bytes.len().min(80)];
            assert_eq!(read(bytes.as_bytes(), part), Err(error.clone()), "{start:?} in parts of {part}");
        }
    }
}

proptest! {
    /// Whatever comes in and however it is cut: no panic, and the cuts don't change a well-formed answer.
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), part in 1usize..50) {
        let _ = read(&noise, part);
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        bytes.extend_from_slice(&noise);
        let _ = read(&bytes, part);
    }

    #[test]
    fn any_chunking_gives_the_same_body(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..10),
        cut in 1usize..50,
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for part in &parts {
            bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let (_, body, taken) = read(&bytes, cut).unwrap().unwrap();
        prop_assert_eq!(body, parts.concat());
        prop_assert_eq!(taken, bytes.len());
    }
}
