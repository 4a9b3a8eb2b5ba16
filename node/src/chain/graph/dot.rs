//! A chain in the language of graphviz.

use std::fmt::Write;

use super::{condition, on, step};
use crate::api::{ChainView, StageView};

/// The chain as a directed graph: `spry chain describe NAME --output dot | dot -Tsvg`.
pub fn dot(view: &ChainView) -> String {
    let mut drawing = Drawing { out: String::new(), edges: String::new(), nodes: 0 };
    let _ = writeln!(drawing.out, "digraph {} {{", quoted(&view.name));
    drawing.out += "  node [shape=box];\n";
    if !view.stages.is_empty() {
        let request = drawing.node("request", "shape=plaintext");
        let ends = drawing.stages(&view.stages, vec![End { node: request, label: None }], 1);
        let answer = drawing.node("answer", "shape=plaintext");
        drawing.edges(ends, answer);
    }
    for trigger in &view.triggers {
        let start = drawing.node(&on(&trigger.on), "shape=ellipse, style=dashed");
        drawing.stages(&trigger.stages, vec![End { node: start, label: None }], 1);
    }
    drawing.out + &drawing.edges + "}\n"
}

struct Drawing {
    out: String,
    /// Last, outside of every cluster: naming a node within one would draw it there.
    edges: String,
    nodes: usize,
}

/// Where the flow comes from.
struct End {
    node: usize,
    label: Option<String>,
}

impl Drawing {
    /// Draws the stages behind `from`; returns where they end.
    fn stages(&mut self, stages: &[StageView], mut from: Vec<End>, depth: usize) -> Vec<End> {
        for stage in stages {
            from = match stage {
                StageView::Run(steps) => steps.iter().fold(from, |from, one| {
                    let node = self.node(&step(one).join("\n"), "");
                    self.edges(from, node)
                }),
                StageView::Parallel(branches) => {
                    let fork = self.node("", "shape=point");
                    self.edges(from, fork);
                    let mut ends = Vec::new();
                    for branch in branches {
                        ends.extend(self.stages(
                            &branch.stages,
                            vec![End { node: fork, label: None }],
                            depth,
                        ));
                    }
                    let list = self.node("list", "shape=plaintext");
                    self.edges(ends, list)
                }
                StageView::Map { at_once, each, label } => {
                    let pad = "  ".repeat(depth);
                    let title = quoted(&format!("each element, {at_once} at once"));
                    let name = quoted(&format!("cluster {label}"));
                    let _ = writeln!(self.out, "{pad}subgraph {name} {{ label={title}; style=dashed;");
                    let ends = self.stages(each, from, depth + 1);
                    let _ = writeln!(self.out, "{pad}}}");
                    ends
                }
                StageView::When { cases, otherwise } => {
                    let choice = self.node("", "shape=diamond");
                    self.edges(from, choice);
                    let mut ends = Vec::new();
                    for case in cases {
                        let label = Some(condition(&case.field, &case.equals));
                        ends.extend(self.stages(&case.then, vec![End { node: choice, label }], depth));
                    }
                    let label = Some("otherwise".into());
                    ends.extend(self.stages(otherwise, vec![End { node: choice, label }], depth));
                    ends
                }
            };
        }
        from
    }

    fn node(&mut self, label: &str, more: &str) -> usize {
        let node = self.nodes;
        self.nodes += 1;
        let comma = if more.is_empty() { "" } else { ", " };
        let _ = writeln!(self.out, "  n{node} [label={}{comma}{more}];", quoted(label));
        node
    }

    fn edges(&mut self, from: Vec<End>, to: usize) -> Vec<End> {
        for End { node, label } in from {
            let label = label.map(|label| format!(" [label={}]", quoted(&label))).unwrap_or_default();
            let _ = writeln!(self.edges, "  n{node} -> n{to}{label};");
        }
        vec![End { node: to, label: None }]
    }
}

/// A text between quotation marks. All there is has been made plain before; see [`condition`].
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
