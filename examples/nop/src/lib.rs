//! Example function.
