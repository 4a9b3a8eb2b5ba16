//! One secret as it lies on the disk: XChaCha20-Poly1305, whose nonce of 24 bytes can be drawn at random for each
//! value that is ever set. The name is authenticated with it.
//!
//! ```text
//! 0          24                      24 + n         24 + n + 16
//! │ nonce    │ the value, encrypted  │ tag           │
//! ```

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use super::key::{Key, random};
use super::{SecretName, Value};

const NONCE: usize = 24;

pub(super) fn seal(key: &Key, name: &SecretName, value: &Value) -> std::io::Result<Vec<u8>> {
    let nonce = random::<NONCE>()?;
    let payload = Payload { msg: value.as_bytes(), aad: name.as_str().as_bytes() };
    let encrypted = XChaCha20Poly1305::new(key.bytes().into())
        .encrypt(&XNonce::from(*nonce), payload)
        .map_err(|_| std::io::Error::other("the cipher refused the value's length"))?;
    let mut sealed = nonce.to_vec();
    sealed.extend(encrypted);
    Ok(sealed)
}

/// `None`: another key, another name, or not what was sealed.
pub(super) fn open(key: &Key, name: &SecretName, sealed: &[u8]) -> Option<Value> {
    let (nonce, encrypted) = sealed.split_first_chunk::<NONCE>()?;
    let payload = Payload { msg: encrypted, aad: name.as_str().as_bytes() };
    XChaCha20Poly1305::new(key.bytes().into()).decrypt(&XNonce::from(*nonce), payload).ok().map(Value::new)
}
