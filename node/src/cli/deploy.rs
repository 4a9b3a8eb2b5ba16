//! `spry deploy`: pack, upload, and say what happens meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body::{Body, Frame, SizeHint};

use super::client::{self, Client};
use super::{Failure, Output, pack, print, print_json, segment};
use crate::api::Deployed;
use crate::manifest::{Defaults, Manifest, Name, Override};
use crate::progress::ProgressPage;
use crate::units::Size;

/// The daemon's answer is there; what it has said before is read for so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What `spry deploy` takes.
#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// A folder (with a spry.toml, or with one .py or .so), a .py file, or a .so file
    path: PathBuf,
    /// Deploy under this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Replace a key of spry.toml, such as limits.memory=64MiB or env.GREETING=hi
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) async fn deploy(client: &Client, wanted: Deploy, output: Output) -> Result<(), Failure> {
    let usage = |problem: String| Failure::Usage(problem);
    let overrides: Vec<Override> = wanted
        .set
        .iter()
        .map(|text| text.parse::<Override>())
        .collect::<Result<_, _>>()
        .map_err(|error| usage(format!("--set: {error}")))?;
    if let Some(name) = &wanted.name {
        name.parse::<Name>().map_err(|error| usage(format!("--name: {error}")))?;
    }
    let metadata = std::fs::metadata(&wanted.path);
    let metadata = metadata.map_err(|error| usage(format!("read {}: {error}", wanted.path.display())))?;
    if metadata.is_dir() {
        // What is wrong here would be found there as well, but after the upload.
        Manifest::of_folder(&wanted.path, wanted.name.as_deref(), &overrides, &Defaults::default())
            .map_err(|error| Failure::Node(error.to_string()))?;
    }
    let say = |text: &str| {
        if output == Output::Text {
            let _ = writeln!(io::stderr(), "{text}");
        }
    };
    let packed = pack::pack(&wanted.path).map_err(|error| usage(error.to_string()))?;
    let files = if packed.files == 1 { "1 file".into() } else { format!("{} files", packed.files) };
    say(&format!("packing {}: {files}, {}", wanted.path.display(), Size::bytes(packed.bytes).rounded()));

    let progress = progress_name(output);
    let request = Request::post(target(&wanted, progress.as_deref())?)
        .header("host", "spry")
        .header("content-type", "application/x-tar")
        .body(Archive { file: packed.archive, left: packed.bytes })
        .map_err(|error| usage(error.to_string()))?;
    let answer = while_it_tells(client, progress.as_deref(), &say, client.send(request)).await?;
    let body = client::good(answer).await?;
    match output {
        Output::Json => print_json(&body),
        Output::Text => print(&summary(&client::read(&body)?)),
    }
}

/// By which the daemon's progress can be asked for; programs don't ask.
pub(super) fn progress_name(output: Output) -> Option<String> {
    match (output, crate::sys::random_u64()) {
        (Output::Text, Ok(number)) => Some(format!("deploy-{number:016x}")),
        _ => None,
    }
}

/// Waits for an answer, and says meanwhile what the daemon does for it.
pub(super) async fn while_it_tells<T>(
    client: &Client,
    progress: Option<&str>,
    say: &impl Fn(&str),
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut answer = pin!(answer);
    let Some(name) = progress else { return answer.await };
    let mut shown = pin!(show_progress(client, name, say));
    tokio::select! {
        answer = &mut answer => {
            // What was said last may still be on its way.
            let _ = tokio::time::timeout(LAST_WORDS, shown).await;
            answer
        }
        () = &mut shown => answer.await,
    }
}

/// Says what the daemon does meanwhile, until it has ended.
async fn show_progress(client: &Client, name: &str, say: &impl Fn(&str)) {
    let mut since = 0;
    loop {
        let path = format!("/system/progress/{name}?since={since}&wait=30s");
        let page = client.call(Method::GET, &path).await;
        match page.and_then(|body| client::read::<ProgressPage>(&body)) {
            Ok(page) => {
                page.lines.iter().for_each(|line| say(line));
                since = page.next;
                if page.done {
                    return;
                }
            }
            // Whatever it is, the deploy's own answer says it better.
            Err(_) => return,
        }
    }
}

fn target(wanted: &Deploy, progress: Option<&str>) -> Result<String, Failure> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for set in &wanted.set {
        query.append_pair("set", set);
    }
    if let Some(name) = progress {
        query.append_pair("progress", name);
    }
    let path = match &wanted.name {
        Some(name) => format!("/system/function/{}", segment(name)?),
        None => "/system/functions".into(),
    };
    Ok(format!("{path}?{}", query.finish()))
}

pub(super) fn summary(deployed: &Deployed) -> String {
    let view = &deployed.function;
    let replaced = deployed.replaced.map(|old| format!(", replacing version {old}")).unwrap_or_default();
    format!(
        "{} version {} is ready{replaced}: {}, {:.1} ms to load\n",
        view.name, view.version, deployed.runtime_version, deployed.zygote_ms
    )
}

/// The archive as a request's body, read piece by piece.
struct Archive {
    file: File,
    left: u64,
}

impl Body for Archive {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        // Blocking, from a file that has just been written: nobody else waits in this process.
        let mut piece = vec![0; self.left.min(256 * 1024) as usize];
        let read = self.file.read_exact(&mut piece);
        self.left -= piece.len() as u64;
        Poll::Ready(Some(read.map(|()| Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
