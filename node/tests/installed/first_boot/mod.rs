//! After the installation: what the unit promises, the limits, restarts, reloads and crashes.

mod limits;
mod restarts;
mod scheduler;
mod unit;
