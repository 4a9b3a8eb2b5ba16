//! The policies on the simulated machine: its own rules, and what each policy promises.

mod fairness;
mod machine;
mod optimal;
mod starvation;
mod traces;
