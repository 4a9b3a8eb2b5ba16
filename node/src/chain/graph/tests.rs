use super::*;
use crate::chain::spec::ChainSpec;
use crate::chain::{Known, flatten};
use crate::store::StoredChain;
use proptest::prelude::*;

const INNER: &str = "name='inner'\n[[step]]\nfunction='scan'\n[[step]]\nmap='keep'\nat_once=4\n";
const SHORT: &str = "name='short'\n[[step]]\nparallel=['scan','f']\n";

fn view(text: &str) -> ChainView {
    let names = ["decode", "resize", "scan", "encode", "keep", "mend", "store", "f"];
    let functions = names.map(|name| name.parse().expect("a name")).into();
    let chains = [INNER, SHORT].map(|text| ChainSpec::parse(text).expect(text));
    let known =
        Known { functions, chains: chains.into_iter().map(|spec| (spec.name.clone(), spec)).collect() };
    let plan = flatten(&ChainSpec::parse(text).expect(text), &known).expect(text);
    ChainView::new(&StoredChain { name: "x".into(), source: text.into(), applied_unix_ms: 0 }, &plan)
}

/// Draws these steps; the expectation begins with a line end, so that it stands straight in the source.
#[track_caller]
fn draws(steps: &str, expected: &str) {
    let drawn = text(&view(&format!("name='x'\n{steps}")), 80);
    assert_eq!(format!("\n{drawn}"), expected, "\n{drawn}");
}

#[test]
fn steps_follow_one_another() {
    draws(
        "[[step]]\nfunction='decode'\n[[step]]\nfunction='resize'\nretry=2\non_error='mend'\n[[step]]\n\
         function='encode'\nname='last'\n[[step]]\nfunction='decode'\n",
        "
     request
        ▼
    ┌────────┐
    │ decode │
    └───┬────┘
        ▼
┌────────────────┐
│ resize         │
│ retry 2        │
│ on error: mend │
└───────┬────────┘
        ▼
 ┌──────────────┐
 │ last: encode │
 └──────┬───────┘
        ▼
   ┌──────────┐
   │ decode-2 │
   └────┬─────┘
        ▼
     answer
",
    );
}

#[test]
fn a_fan_out_parts_and_comes_together() {
    draws(
        "[[step]]\nfunction='decode'\n[[step]]\nparallel=['resize','inner','f']\n[[step]]\nfunction='encode'\n",
        "
                     request
                        ▼
                    ┌────────┐
                    │ decode │
                    └───┬────┘
                        │
    ┌───────────────┬───┴────────────────────┐
    ▼               ▼                        ▼
┌────────┐    ┌────────────┐               ┌───┐
│ resize │    │ inner/scan │               │ f │
└───┬────┘    └─────┬──────┘               └─┬─┘
    │               ▼                        │
    │       ┌╌ each element, 4 at once ╌┐    │
    │       ╎ ┌────────────┐            ╎    │
    │       ╎ │ inner/keep │            ╎    │
    │       ╎ └────────────┘            ╎    │
    │       └╌╌╌╌╌╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘    │
    └───────────────┴───┬────────────────────┘
                        ▼
                    ┌────────┐
                    │ encode │
                    └───┬────┘
                        ▼
                     answer
",
    );
}

#[test]
fn the_trunk_meets_the_middle_branch() {
    draws(
        "[[step]]\nparallel=['f','f','f']\n[[step]]\nparallel=['scan']\n",
        "
       request
          │
  ┌───────┼────────┐
  ▼       ▼        ▼
┌───┐  ┌─────┐  ┌─────┐
│ f │  │ f-2 │  │ f-3 │
└─┬─┘  └──┬──┘  └──┬──┘
  └───────┼────────┘
          │
          │
          ▼
       ┌──────┐
       │ scan │
       └──┬───┘
          │
          ▼
       answer
",
    );
}

#[test]
fn cases_stand_above_their_branches_and_triggers_below_the_chain() {
    draws(
        "[[step]]\nwhen=[{field='/kind',equals='image',then='resize'},{field='',equals=1,then='inner'}]\n\
         [[trigger]]\nfunction='store'\non={every='thumb'}\n[[trigger]]\nchain='inner'\non={set=['a','b']}\n\
         [[trigger]]\nfunction='f'\non={count=10,of='thumb'}\n[[trigger]]\nfunction='f'\n\
         on={window='10ms',of='thumb'}\n",
        "
                          request
                             │
       ┌─────────────────┬───┴──────────────────────┐
/kind = \"image\"      value = 1                  otherwise
       ▼                 ▼                          │
   ┌────────┐      ┌────────────┐                   │
   │ resize │      │ inner/scan │                   │
   └───┬────┘      └─────┬──────┘                   │
       │                 ▼                          │
       │         ┌╌ each element, 4 at once ╌┐      │
       │         ╎ ┌────────────┐            ╎      │
       │         ╎ │ inner/keep │            ╎      │
       │         ╎ └────────────┘            ╎      │
       │         └╌╌╌╌╌╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘      │
       └─────────────────┴───┬──────────────────────┘
                             ▼
                          answer

every \"thumb\"
      ▼
  ┌───────┐
  │ store │
  └───────┘

one of each: \"a\", \"b\"
          ▼
   ┌──────────────┐
   │ inner-2/scan │
   └──────┬───────┘
          ▼
 ┌╌ each element, 4 at once ╌┐
 ╎ ┌──────────────┐          ╎
 ╎ │ inner-2/keep │          ╎
 ╎ └──────────────┘          ╎
 └╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘

each 10 of \"thumb\"
         ▼
       ┌───┐
       │ f │
       └───┘

\"thumb\" within 10ms
         ▼
      ┌─────┐
      │ f-2 │
      └─────┘
",
    );
}

#[test]
fn branches_that_do_not_fit_beside_stand_below_one_another() {
    let long = "x".repeat(63);
    draws(
        &format!(
            "[[step]]\nname='{long}'\nparallel=['f','scan']\n[[step]]\n\
             when=[{{field='/{long}',equals='{long}',then='f'}},{{field='/{long}',equals=2,then='short'}}]\n"
        ),
        "
                                    request
                                       ▼
  ┌╌ all of ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┐
  ╎ ┌───────────────────────────────────────────────────────────────────┐    ╎
  ╎ │ xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/f │    ╎
  ╎ └───────────────────────────────────────────────────────────────────┘    ╎
  ├╌ and ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┤
  ╎ ┌──────────────────────────────────────────────────────────────────────┐ ╎
  ╎ │ xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/scan │ ╎
  ╎ └──────────────────────────────────────────────────────────────────────┘ ╎
  └╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘
                                       ▼
┌╌ one of: /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx … ╌┐
╎ ┌───┐                                                                        ╎
╎ │ f │                                                                        ╎
╎ └───┘                                                                        ╎
├╌ or: /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx = 2 ╌╌╌┤
╎       ┌──────┴───────┐                                                       ╎
╎       ▼              ▼                                                       ╎
╎ ┌────────────┐  ┌─────────┐                                                  ╎
╎ │ short/scan │  │ short/f │                                                  ╎
╎ └─────┬──────┘  └────┬────┘                                                  ╎
╎       └──────┬───────┘                                                       ╎
├╌ or: otherwise ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┤
╎ │                                                                            ╎
└╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘
                                       ▼
                                    answer
",
    );
}

#[test]
fn texts_of_the_author_s_do_not_steer_the_terminal() {
    let view =
        view("name='x'\n[[step]]\nwhen=[{field=\"/a\\u001b[31m\",equals=\"é\\u202e\\n\\\"\",then='f'}]\n");
    let drawn = text(&view, 80);
    assert!(drawn.contains("/a\\u{1b}[31m = \"\\u{e9}\\u{202e}\\n"), "{drawn}");
    assert!(drawn.chars().all(|letter| letter == '\n' || !letter.is_control()), "{drawn:?}");
    let dot = dot(&view);
    assert!(dot.contains(r#"[label="/a\\u{1b}[31m = \"\\u{e9}\\u{202e}\\n\\\"\""]"#), "{dot}");
}

#[test]
fn a_chain_in_the_language_of_graphviz() {
    let view = view(
        "name='x'\n[[step]]\nfunction='decode'\nretry=1\n[[step]]\nmap='short'\n[[step]]\n\
         when=[{field='/kind',equals='image',then='resize'}]\n[[trigger]]\nfunction='store'\n\
         on={every='thumb'}\n",
    );
    let expected = r#"digraph "x" {
  node [shape=box];
  n0 [label="request", shape=plaintext];
  n1 [label="decode\nretry 1"];
  subgraph "cluster short" { label="each element, 8 at once"; style=dashed;
  n2 [label="", shape=point];
  n3 [label="short/scan"];
  n4 [label="short/f"];
  n5 [label="list", shape=plaintext];
  }
  n6 [label="", shape=diamond];
  n7 [label="resize"];
  n8 [label="answer", shape=plaintext];
  n9 [label="every \"thumb\"", shape=ellipse, style=dashed];
  n10 [label="store"];
  n0 -> n1;
  n1 -> n2;
  n2 -> n3;
  n2 -> n4;
  n3 -> n5;
  n4 -> n5;
  n5 -> n6;
  n6 -> n7 [label="/kind = \"image\""];
  n7 -> n8;
  n6 -> n8 [label="otherwise"];
  n9 -> n10;
}
"#;
    assert_eq!(dot(&view), expected);
}

#[test]
fn a_broken_chain_has_no_picture() {
    let stored = StoredChain { name: "x".into(), source: "?".into(), applied_unix_ms: 0 };
    let view = ChainView::broken(&stored, "it is none".into());
    assert_eq!(text(&view, 80), "");
    assert_eq!(dot(&view), "digraph \"x\" {\n  node [shape=box];\n}\n");
}

/// Stages as deep as the limits let chains become, with names as long.
fn any_stage() -> impl Strategy<Value = StageView> {
    let step = ("[a-z]{1,60}(/[a-z]{1,60})?", "[a-z]{1,63}", 0u8..3, proptest::option::of("[a-z]{1,63}"));
    let step =
        step.prop_map(|(name, function, retry, on_error)| StepView { name, function, retry, on_error });
    let run = proptest::collection::vec(step, 1..3).prop_map(StageView::Run);
    run.prop_recursive(8, 40, 4, |inner| {
        let stages = || proptest::collection::vec(inner.clone(), 1..4);
        let branch = |stages| crate::api::BranchView { label: "b".into(), stages };
        let case = |(field, equals, then): (String, String, _)| crate::api::CaseView {
            field: format!("/{field}"),
            equals: equals.into(),
            then,
        };
        prop_oneof![
            proptest::collection::vec(stages().prop_map(branch), 1..4).prop_map(StageView::Parallel),
            (stages(), 1u32..65).prop_map(|(each, at_once)| StageView::Map {
                label: "m".into(),
                at_once,
                each
            }),
            (
                proptest::collection::vec(("\\PC{0,80}", ".{0,80}", stages()).prop_map(case), 1..4),
                proptest::collection::vec(inner.clone(), 0..2)
            )
                .prop_map(|(cases, otherwise)| StageView::When { cases, otherwise }),
        ]
    })
}

proptest! {
    #[test]
    fn no_chain_is_wider_than_asked_for(
        stages in proptest::collection::vec(any_stage(), 1..3), width in 0usize..120,
    ) {
        let stored = StoredChain { name: "x".into(), source: String::new(), applied_unix_ms: 0 };
        let mut view = ChainView::broken(&stored, String::new());
        view.stages = stages;
        let drawn = text(&view, width);
        let widest = drawn.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        prop_assert!(widest <= width.max(40), "{widest} columns instead of {width}\n{drawn}");
        prop_assert!(drawn.trim_start().starts_with("request") && drawn.trim_end().ends_with("answer"));
        let dot = dot(&view);
        let (edges, nodes): (Vec<&str>, Vec<&str>) =
            dot.lines().filter(|line| line.starts_with("  n") && line.contains("[label=") || line.contains(" -> n"))
                .partition(|line| line.trim_start().split(' ').nth(1) == Some("->"));
        let entered: std::collections::BTreeSet<&str> =
            edges.iter().filter_map(|edge| edge.split(' ').nth(4)).map(|to| to.trim_end_matches(';')).collect();
        prop_assert_eq!(entered.len() + 1, nodes.len(), "every node but the request is reached\n{}", dot);
    }
}
