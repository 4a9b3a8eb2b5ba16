//! A chain as a picture: [`text`] for a terminal, [`dot()`] for graphviz.
//!
//! The text flows from top to bottom. Every part of a chain becomes a [`Block`]: lines of one width and a
//! column at which it is entered and left. Branches stand side by side if they fit, else one below the other in a
//! frame, so that no chain is wider than what is asked for.

mod block;
mod dot;

use block::{Block, Branch};

use crate::api::{ChainView, OnView, StageView, StepView};

pub use dot::dot;

/// Draws the chain, at most `width` columns wide (40 at least: deeper frames leave no room for names).
pub fn text(view: &ChainView, width: usize) -> String {
    let width = width.max(40);
    let ends = |stages: Block| {
        let (first, last) = (Block::words("request"), Block::words("answer"));
        Block::sequence(vec![first, stages, last], width)
    };
    let mut out = match view.stages.is_empty() {
        true => String::new(),
        false => ends(sequence(&view.stages, width)).print(),
    };
    for trigger in &view.triggers {
        let first = Block::words(&block::clip(&on(&trigger.on), width));
        let drawn = Block::sequence(vec![first, sequence(&trigger.stages, width)], width);
        out += &format!("\n{}", drawn.print());
    }
    out
}

fn sequence(stages: &[StageView], width: usize) -> Block {
    Block::sequence(stages.iter().flat_map(|one| stage(one, width)).collect(), width)
}

fn stage(stage: &StageView, width: usize) -> Vec<Block> {
    let within = |stages: &[StageView], label: Option<String>| move_in(stages, label, width);
    match stage {
        StageView::Run(steps) => steps.iter().map(|one| Block::boxed(&step(one), width)).collect(),
        StageView::Parallel(branches) => {
            let drawn = branches.iter().map(|branch| within(&branch.stages, None)).collect();
            vec![Block::branches("all of", "and", drawn, width)]
        }
        StageView::Map { at_once, each, .. } => {
            let inner = sequence(each, width - block::FRAME);
            vec![Block::framed(&format!("each element, {at_once} at once"), inner, width)]
        }
        StageView::When { cases, otherwise } => {
            let mut drawn: Vec<Branch> = cases
                .iter()
                .map(|case| within(&case.then, Some(condition(&case.field, &case.equals))))
                .collect();
            drawn.push(within(otherwise, Some("otherwise".into())));
            vec![Block::branches("one of", "or", drawn, width)]
        }
    }
}

/// A branch in both of its widths: side by side it may be as wide as all, in a frame it has less.
fn move_in(stages: &[StageView], label: Option<String>, width: usize) -> Branch {
    let draw = |width| match stages.is_empty() {
        true => Block::passage(),
        false => sequence(stages, width),
    };
    Branch { label, beside: draw(width), below: draw(width - block::FRAME) }
}

/// What stands in the box of a step.
fn step(step: &StepView) -> Vec<String> {
    // A name that says which function it is needs no second one.
    let last = step.name.rsplit('/').next().unwrap_or_default();
    let numbered = last.strip_prefix(step.function.as_str()).and_then(|rest| rest.strip_prefix('-'));
    let same = last == step.function
        || numbered
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    let mut lines = vec![if same { step.name.clone() } else { format!("{}: {}", step.name, step.function) }];
    if step.retry > 0 {
        lines.push(format!("retry {}", step.retry));
    }
    if let Some(handler) = &step.on_error {
        lines.push(format!("on error: {handler}"));
    }
    lines
}

/// `/kind = "image"`, in letters that a terminal shows one column wide each.
fn condition(field: &str, equals: &serde_json::Value) -> String {
    let field = if field.is_empty() { "value" } else { field };
    let plain = |text: String| -> String {
        text.chars()
            .flat_map(|letter| match letter {
                ' '..='~' => vec![letter],
                other => other.escape_unicode().collect(),
            })
            .collect()
    };
    plain(format!("{field} = {equals}"))
}

/// When a trigger starts, in words.
fn on(on: &OnView) -> String {
    match on {
        OnView::Every { every } => format!("every \"{every}\""),
        OnView::Count { count, of } => format!("each {count} of \"{of}\""),
        OnView::Set { set } => {
            let names: Vec<String> = set.iter().map(|name| format!("\"{name}\"")).collect();
            format!("one of each: {}", names.join(", "))
        }
        OnView::Window { window, of } => format!("\"{of}\" within {window}"),
    }
}

#[cfg(test)]
mod tests;
