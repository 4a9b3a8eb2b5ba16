//! One connection, from its first byte to its end.
//!
//! hyper gives the head of an HTTP/1 request a time, but not the wait for the first byte that says which HTTP it is, nor an
//! HTTP/2 connection on which nothing is asked for. Connections are counted, so each of these would keep somebody else out
//! for as long as its client likes. So every connection is looked at again and again, and ends when nothing has gone on
//! since the look before: no request in service, no byte in or out. One that has not asked for anything by the first look
//! ends then, whatever bytes it has sent.

use std::cell::Cell;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use spry_wire::frame::HEAD_MAX;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::LAST_WORDS;
use super::unsent::Client;

/// What is read from an HTTP/1 connection at once, and the longest head. Twice a head that fits into a frame, so that
/// one that doesn't is refused in our own words; no more, so that a body's pieces are in the core's own cache when
/// they are copied.
const READ_MAX: usize = 2 * HEAD_MAX;
/// At a shutdown, connections stay open this long for requests that are on their way; the answers close them.
const LAST_REQUESTS: Duration = Duration::from_millis(300);
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Serves a connection until it ends, is silent for longer than `patience`, or `closed` says so. A client that sends a
/// request's head more slowly than `patience` is cut off.
pub(super) async fn hold<I, A, F>(
    io: I,
    answer: A,
    patience: Duration,
    mut closed: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    A: Fn(Request<Incoming>, Arc<Client>) -> F,
    F: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let mut builder = auto::Builder::new(LocalExecutor);
    // Not `pipeline_flush`: with it, the 400 for a malformed request is never sent.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(READ_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let (pulse, client) = (Rc::new(Pulse::default()), Arc::<Client>::default());
    let service = hyper::service::service_fn(|request| {
        let (asked, answer) = (Asked::new(Rc::clone(&pulse)), answer(request, Arc::clone(&client)));
        async move {
            let _asked = asked;
            Ok::<_, std::convert::Infallible>(answer.await)
        }
    });
    let io = TokioIo::new(Felt { io, pulse: Rc::clone(&pulse), client: Arc::clone(&client) });
    let conversation = builder.serve_connection(io, service);
    tokio::pin!(conversation);
    let look = tokio::time::sleep(patience);
    tokio::pin!(look);
    loop {
        tokio::select! {
            ended = conversation.as_mut() => return ended,
            () = client.ended() => return Ok(()),
            _ = closed.wait_for(|closed| *closed) => break,
            () = look.as_mut() => {}
        }
        if pulse.is_still() {
            conversation.as_mut().graceful_shutdown();
            // A request that comes this moment is still answered.
            while let Err(_elapsed) = tokio::time::timeout(LAST_WORDS, conversation.as_mut()).await {
                if pulse.is_still() {
                    break;
                }
            }
            return Ok(());
        }
        look.as_mut().reset(tokio::time::Instant::now() + patience);
    }
    // A request that is on its way is answered, and its answer ends the connection; closed at once, the client
    // would hear nothing.
    match tokio::time::timeout(LAST_REQUESTS, conversation.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    }
}

/// What goes on in a connection.
#[derive(Debug, Default)]
struct Pulse {
    /// Requests that are being answered.
    in_service: Cell<usize>,
    /// There was a request.
    asked: Cell<bool>,
    /// Counts what happens: reads, writes, answers.
    beats: Cell<u64>,
    /// What it was at the last look.
    seen: Cell<u64>,
}

impl Pulse {
    fn beat(&self) {
        self.beats.set(self.beats.get().wrapping_add(1));
    }

    /// A look: whether nothing goes on, and nothing has since the look before.
    fn is_still(&self) -> bool {
        let moved = self.seen.replace(self.beats.get()) != self.beats.get();
        self.in_service.get() == 0 && !(moved && self.asked.get())
    }
}

/// A request, while it is being answered.
struct Asked(Rc<Pulse>);

impl Asked {
    fn new(pulse: Rc<Pulse>) -> Self {
        pulse.asked.set(true);
        pulse.in_service.set(pulse.in_service.get() + 1);
        Self(pulse)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.in_service.set(self.0.in_service.get() - 1);
        // Its answer has yet to be written.
        self.0.beat();
    }
}

/// A stream whose traffic is felt.
struct Felt<I> {
    io: I,
    pulse: Rc<Pulse>,
    client: Arc<Client>,
}

impl<I> Felt<I> {
    fn felt<T>(&self, went: Poll<T>) -> Poll<T> {
        if went.is_ready() {
            self.pulse.beat();
        }
        went
    }

    fn taken(&self, went: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = went {
            self.client.took(bytes);
        }
        self.felt(went)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Felt<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let went = Pin::new(&mut self.io).poll_read(context, buffer);
        self.felt(went)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Felt<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let went = Pin::new(&mut self.io).poll_write(context, bytes);
        self.taken(went)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let went = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.taken(went)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Runs hyper's tasks (HTTP/2 streams) on the worker's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a client that sends this and then waits hears until it is cut off.
    async fn heard(sent: &[u8], patience: Duration) -> Vec<u8> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (_closing, closed) = watch::channel(false);
        let answer = |_, _| async { Response::new(Full::from("hello")) };
        let (mut reader, mut writer) = tokio::io::split(client);
        let listen = async {
            writer.write_all(sent).await.expect("written");
            let mut heard = Vec::new();
            let _ = reader.read_to_end(&mut heard).await;
            heard
        };
        let both = async { tokio::join!(hold(server, answer, patience, closed), listen).1 };
        let watched = tokio::time::timeout(Duration::from_secs(60), both);
        tokio::task::LocalSet::new().run_until(watched).await.expect("it is cut off")
    }

    #[tokio::test]
    async fn who_asks_for_nothing_is_not_kept() {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let half = &b"GET / HTTP/1.1\r\nhost: x\r\n"[..];
        for silent in [&b""[..], b"P", b"PRI * HTTP/2", PREFACE, half] {
            let heard = heard(silent, Duration::from_millis(1)).await;
            assert!(!heard.ends_with(b"hello"), "{:?}", silent.escape_ascii());
        }
        let whole = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let heard = heard(whole, Duration::from_secs(3600)).await;
        assert!(heard.ends_with(b"hello"), "{:?}", heard.escape_ascii());
    }

    #[test]
    fn what_goes_on_is_not_silence() {
        let pulse = Rc::new(Pulse::default());
        pulse.beat();
        assert!(pulse.is_still(), "bytes, but no request");
        let asked = Asked::new(Rc::clone(&pulse));
        assert!(!pulse.is_still() && !pulse.is_still(), "a request is in service, however long");
        drop(asked);
        assert!(!pulse.is_still(), "its answer is on its way");
        assert!(pulse.is_still());
        pulse.beat();
        assert!(!pulse.is_still(), "a byte has passed");
        assert!(pulse.is_still());
    }
}
