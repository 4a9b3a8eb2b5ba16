//! What the planner (`spry_sched::layers`) knows modules and packages by.

use std::collections::HashMap;

use spry_sched::layers::Contents;

use super::fit::{self, Provided};

/// Numbers for names, for as long as a plan is made.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

/// Between a module's name and the folders that it may come from.
const FROM: char = '\0';

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let next = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), next);
        next
    }

    /// Nothing, if what these folders have can't be told now.
    pub(super) fn contents(
        &mut self,
        ground: u32,
        modules: &[String],
        folders: &[String],
        provided: &Provided,
    ) -> Option<Contents> {
        let origins = provided.origins(folders)?;
        let sorted = |numbers: &mut Vec<u32>| {
            numbers.sort_unstable();
            numbers.dedup();
        };
        let number = |name: &String| {
            // A module of the same name from other packages is another.
            let Some(folders) = origins.get(fit::top(name)) else { return self.number(name) };
            let mut full = name.clone();
            for folder in folders {
                full.push(FROM);
                full.push_str(folder);
            }
            self.number(&full)
        };
        let mut modules: Vec<u32> = modules.iter().map(number).collect();
        sorted(&mut modules);
        let mut packages: Vec<u32> = folders.iter().map(|folder| self.number(folder)).collect();
        sorted(&mut packages);
        Some(Contents { ground, modules, packages })
    }

    pub(super) fn name(&self, number: u32) -> String {
        self.names[number as usize].clone()
    }

    pub(super) fn module(&self, number: u32) -> String {
        let full = &self.names[number as usize];
        full.split_once(FROM).map_or(full.as_str(), |(name, _)| name).to_owned()
    }
}
