//! Tokens as they are stored: see [`crate::access`].

use super::{Store, StoreError};
use crate::access::StoredToken;

impl Store {
    /// Every token, those that have expired included, oldest first.
    pub fn tokens(&self) -> Result<Vec<StoredToken>, StoreError> {
        self.shared.database.lock().tokens()
    }

    /// Keeps one, durably.
    pub fn add_token(&self, token: &StoredToken) -> Result<(), StoreError> {
        self.shared.database.lock().add_token(token)
    }

    /// Forgets one, durably. False: there is none of that id.
    pub fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        self.shared.database.lock().revoke_token(id)
    }
}
