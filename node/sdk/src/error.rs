//! Why a function failed, in words for its caller.

use std::fmt;

/// The invocation failed: the caller gets a 500 with this text. The first line is the message; what follows
/// (causes, a trace) is kept with the activation.
///
/// Made from any [`std::error::Error`] by `?`, with the chain of its sources. (So it isn't an `Error` itself.)
#[derive(Debug)]
pub struct Error {
    text: String,
}

impl Error {
    /// An error with a message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { text: message.into() }
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str("\ncaused by: ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { text }
    }
}
