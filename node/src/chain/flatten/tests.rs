use super::*;
use crate::chain::plan::On;
use proptest::prelude::*;

fn known(functions: &[&str], chains: &[&str]) -> Known {
    let chains = chains.iter().map(|text| ChainSpec::parse(text).expect(text));
    Known {
        functions: functions.iter().map(|name| name.parse().expect("a name")).collect(),
        chains: chains.map(|spec| (spec.name.clone(), spec)).collect(),
    }
}

fn plan(text: &str, known: &Known) -> Result<Plan, ChainError> {
    flatten(&ChainSpec::parse(text).expect(text), known)
}

fn refused(text: &str, known: &Known) -> String {
    plan(text, known).expect_err(text).to_string()
}

/// The plan's stages in a line: `NAME=FUNCTION`, `*RETRY`, `!HANDLER`.
fn line(plan: &Plan) -> String {
    stages(&plan.stages, plan)
}

fn stages(list: &[Stage], plan: &Plan) -> String {
    let function = |index: usize| plan.functions[index].as_str();
    let step = |step: &Step| {
        let mut text = format!("{}={}", step.name, function(step.function));
        if step.retry > 0 {
            text += &format!("*{}", step.retry);
        }
        if let Some(handler) = step.on_error {
            text += &format!("!{}", function(handler));
        }
        text
    };
    let one = |stage: &Stage| match stage {
        Stage::Run(run) => run.iter().map(step).collect::<Vec<_>>().join(" "),
        Stage::Parallel(branches) => {
            let branch = |branch: &Branch| format!("{}: {}", branch.label, stages(&branch.stages, plan));
            format!("par({})", branches.iter().map(branch).collect::<Vec<_>>().join(" | "))
        }
        Stage::Map { each, at_once, label } => format!("map({label} x{at_once}: {})", stages(each, plan)),
        Stage::When { cases, otherwise } => {
            let case =
                |case: &Case| format!("{}=={}: {}", case.pointer, case.equals, stages(&case.then, plan));
            let cases = cases.iter().map(case).collect::<Vec<_>>().join(" | ");
            format!("when({cases} | else: {})", stages(otherwise, plan))
        }
    };
    list.iter().map(one).collect::<Vec<_>>().join("; ")
}

const ABC: [&str; 3] = ["a", "b", "c"];

#[test]
fn functions_that_follow_one_another_are_a_run() {
    let text = "name='x'\ntimeout='2s'\npayload='1MiB'\n[[step]]\nfunction='a'\n[[step]]\nfunction='b'\n\
                retry=2\non_error='c'\n[[step]]\nfunction='a'\nname='last'\n[[step]]\nfunction='a'\n";
    let plan = plan(text, &known(&ABC, &[])).expect("flat");
    assert_eq!(line(&plan), "a=a b=b*2!c last=a a-2=a");
    assert_eq!(plan.functions.iter().map(Name::as_str).collect::<Vec<_>>(), ABC);
    assert_eq!((plan.timeout.as_secs(), plan.payload_bytes), (2, 1 << 20));
}

#[test]
fn a_run_longer_than_a_route_is_split() {
    let text = format!("name='x'\n{}", "[[step]]\nfunction='a'\n".repeat(70));
    let plan = plan(&text, &known(&ABC, &[])).expect("flat");
    let lengths: Vec<usize> = plan
        .stages
        .iter()
        .map(|stage| match stage {
            Stage::Run(run) => run.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [32, 32, 6]);
    let Stage::Run(run) = &plan.stages[2] else { unreachable!("seen above") };
    assert_eq!(run[5].name, "a-70");
}

#[test]
fn shapes_hold_functions_and_chains() {
    let inner = "name='inner'\n[[step]]\nfunction='b'\n[[step]]\nfunction='c'\n";
    let text = "name='x'\n[[step]]\nparallel=['a','inner','a']\n[[step]]\nmap='inner'\nat_once=3\n[[step]]\n\
                when=[{field='/k',equals='v',then='inner'},{field='',equals=1,then='b'}]\notherwise='a'\n";
    let plan = plan(text, &known(&ABC, &[inner])).expect("flat");
    assert_eq!(
        line(&plan),
        "par(a: a=a | inner: inner/b=b inner/c=c | a-2: a-2=a); \
         map(inner-2 x3: inner-2/b=b inner-2/c=c); \
         when(/k==\"v\": inner-3/b=b inner-3/c=c | ==1: b=b | else: a-3=a)"
    );
}

#[test]
fn a_chosen_name_is_a_step_s_own_or_the_path_of_its_branches() {
    let inner = "name='inner'\n[[step]]\nfunction='b'\n[[step]]\nfunction='b'\n";
    let text = "name='x'\n[[step]]\nfunction='a'\n[[step]]\nfunction='b'\nname='a'\n[[step]]\nchain='inner'\n\
                name='deep'\n[[step]]\nparallel=['a','a']\nname='fan'\n[[step]]\nmap='a'\nname='each'\n\
                [[step]]\nname='which'\nwhen=[{field='/k',equals=1,then='a'}]\n";
    let plan = plan(text, &known(&ABC, &[inner])).expect("flat");
    assert_eq!(
        line(&plan),
        "a-2=a a=b deep/b=b deep/b-2=b; par(fan/a: fan/a=a | fan/a-2: fan/a-2=a); map(each x8: each=a); \
         when(/k==1: which/a=a | else: )"
    );
}

#[test]
fn a_chain_within_a_chain_joins_the_runs_beside_it() {
    let inner = "name='inner'\n[[step]]\nfunction='b'\n[[step]]\nparallel=['a']\n[[step]]\nfunction='c'\n";
    let text = "name='x'\n[[step]]\nfunction='a'\n[[step]]\nchain='inner'\n[[step]]\nfunction='a'\n";
    let plan = plan(text, &known(&ABC, &[inner])).expect("flat");
    assert_eq!(line(&plan), "a=a inner/b=b; par(inner/a: inner/a=a); inner/c=c a-2=a");
}

#[test]
fn names_of_steps_are_unique_even_where_functions_look_like_made_up_names() {
    let text = "name='x'\n[[step]]\nfunction='a'\n[[step]]\nfunction='a'\n[[step]]\nfunction='a-2'\n[[step]]\n\
                function='b'\nname='a-3'\n[[step]]\nfunction='a'\n";
    let plan = plan(text, &known(&["a", "a-2", "b"], &[])).expect("flat");
    assert_eq!(line(&plan), "a=a a-2=a a-2-2=a-2 a-3=b a-4=a");
}

#[test]
fn triggers_come_along_once_with_the_chains_that_have_them() {
    let inner = "name='inner'\n[[step]]\nfunction='b'\n[[trigger]]\nfunction='c'\non={every='v'}\n";
    let other = "name='other'\n[[step]]\nfunction='a'\n[[step]]\nfunction='b'\n";
    let text = "name='x'\n[[step]]\nchain='inner'\n[[step]]\nchain='inner'\n[[trigger]]\nchain='other'\n\
                on={count=3,of='v'}\n[[trigger]]\nfunction='b'\non={set=['v','w']}\n";
    let plan = plan(text, &known(&ABC, &[inner, other])).expect("flat");
    assert_eq!(line(&plan), "inner/b=b inner-2/b=b");
    let triggers: Vec<String> = plan
        .triggers
        .iter()
        .map(|trigger| format!("{:?} {}: {}", trigger.on, trigger.label, stages(&trigger.run, &plan)))
        .collect();
    assert_eq!(
        triggers,
        [
            format!("{:?} inner/c: inner/c=c", On::Every("v".into())),
            format!("{:?} other: other/a=a other/b=b", On::Count { name: "v".into(), count: 3 }),
            format!("{:?} b: b=b", On::Set(vec!["v".into(), "w".into()])),
        ]
    );
}

#[test]
fn a_name_that_is_not_there_is_refused_with_a_hint() {
    let known = known(&["resize", "store"], &["name='thumbs'\n[[step]]\nfunction='resize'\n"]);
    for (step, says) in [
        (
            "function='resise'",
            "step 1 names \"resise\", and there is no function of that name; did you mean \"resize\"?",
        ),
        (
            "function='watermark'",
            "step 1 names \"watermark\", and there is no function of that name; deploy it first (`spry deploy`)",
        ),
        ("function='rsize'\nretry=1", "did you mean \"resize\"?"),
        ("chain='thumb'", "there is no chain of that name; did you mean \"thumbs\"?"),
        ("chain='far-away'", "apply it first (`spry chain apply`)"),
        ("parallel=['store','thumsb']", "no function or chain of that name; did you mean \"thumbs\"?"),
        ("map='absent'", "no function or chain of that name; deploy it first"),
        ("when=[{field='',equals=1,then='absent'}]", "step 1 names \"absent\""),
        ("when=[{field='',equals=1,then='store'}]\notherwise='absent'", "step 1 names \"absent\""),
        ("function='store'\non_error='stor'", "did you mean \"store\"?"),
        ("function='thumbs'", "no function of that name; a chain has it: write chain = instead"),
        ("function='store'\non_error='thumbs'", "a chain has it"),
        ("chain='store'", "no chain of that name; a function has it: write function = instead"),
        ("function='store'\n[[trigger]]\nfunction='stor'\non={every='v'}", "trigger 1 names \"stor\""),
        ("function='store'\n[[trigger]]\nchain='store'\non={every='v'}", "a function has it"),
    ] {
        let error = refused(&format!("name='x'\n[[step]]\n{step}\n"), &known);
        assert!(error.contains(says), "{step}: {error}");
    }
    let broken = self::known(&[], &["name='inner'\n[[step]]\nfunction='gone'\n"]);
    let error = refused("name='x'\n[[step]]\nchain='inner'\n", &broken);
    assert!(error.starts_with("step 1 of the chain \"inner\" names \"gone\""), "{error}");
}

#[test]
fn a_cycle_is_refused_with_its_path() {
    let itself = "name='x'\n[[step]]\nfunction='a'\n[[step]]\nchain='x'\n";
    assert_eq!(refused(itself, &known(&ABC, &[])), "the chain leads back to itself: x -> x");
    let chains = ["name='y'\n[[step]]\nmap='z'\n", "name='z'\n[[step]]\nparallel=['a','x']\n"];
    let text = "name='x'\n[[step]]\nchain='y'\n";
    assert_eq!(refused(text, &known(&ABC, &chains)), "the chain leads back to itself: x -> y -> z -> x");
    let text = "name='x'\n[[step]]\nfunction='a'\n[[trigger]]\nchain='x'\non={every='v'}\n";
    assert_eq!(refused(text, &known(&ABC, &[])), "the chain leads back to itself: x -> x");
    // Not a cycle: the chain that is replaced is not the one that is applied.
    let old = "name='x'\n[[step]]\nchain='y'\n";
    let y = "name='y'\n[[step]]\nfunction='a'\n";
    plan("name='x'\n[[step]]\nfunction='a'\n", &known(&ABC, &[old, y])).expect("flat");
}

#[test]
fn chains_lie_eight_deep_at_most() {
    let chain = |number: usize| match number {
        1 => "name='c1'\n[[step]]\nfunction='a'\n".to_owned(),
        _ => format!("name='c{number}'\n[[step]]\nchain='c{}'\n", number - 1),
    };
    let chains: Vec<String> = (1..=DEPTH_MAX).map(chain).collect();
    let chains: Vec<&str> = chains.iter().map(String::as_str).collect();
    let known = known(&ABC, &chains);
    let plan = plan(&chain(DEPTH_MAX), &known).expect("as deep as can be");
    assert_eq!(line(&plan), "c7/c6/c5/c4/c3/c2/c1/a=a");
    let error = refused(&chain(DEPTH_MAX + 1), &known);
    assert_eq!(
        error,
        "chains lie more than 8 deep one within the other: \
         c9 -> c8 -> c7 -> c6 -> c5 -> c4 -> c3 -> c2 -> c1"
    );
}

#[test]
fn steps_are_counted_wherever_they_lie() {
    let sixteen = format!("name='sixteen'\n{}", "[[step]]\nfunction='a'\n".repeat(16));
    let text = |fifteen: usize, extra: &str| {
        format!("name='x'\n{}{extra}", "[[step]]\nchain='sixteen'\n".repeat(fifteen))
    };
    let known = known(&ABC, &[&sixteen]);
    plan(&text(16, ""), &known).expect("256 steps");
    for extra in [
        "[[step]]\nfunction='a'\n",
        "[[step]]\nparallel=['a']\n",
        "[[step]]\nmap='a'\n",
        "[[step]]\nwhen=[{field='',equals=1,then='a'}]\n",
        "[[trigger]]\nfunction='a'\non={every='v'}\n",
    ] {
        assert_eq!(plan(&text(16, extra), &known), Err(ChainError::TooManySteps), "{extra}");
    }
    let otherwise = "[[step]]\nwhen=[{field='',equals=1,then='sixteen'}]\notherwise='a'\n";
    assert_eq!(plan(&text(15, otherwise), &known), Err(ChainError::TooManySteps));
}

#[test]
fn chains_that_multiply_are_given_up_early() {
    let wide = |number: usize| match number {
        1 => "name='w1'\n[[step]]\nfunction='a'\n".to_owned(),
        _ => format!("name='w{number}'\n[[step]]\nparallel=[{}]\n", format!("'w{}',", number - 1).repeat(32)),
    };
    let chains: Vec<String> = (1..=7).map(wide).collect();
    let chains: Vec<&str> = chains.iter().map(String::as_str).collect();
    // 32^7 steps, if they were all made.
    assert_eq!(plan(&wide(8), &known(&ABC, &chains)), Err(ChainError::TooManySteps));
}

#[test]
fn triggers_are_counted_wherever_they_lie() {
    let trigger = "[[trigger]]\nfunction='a'\non={every='v'}\n";
    let inner = format!("name='inner'\n[[step]]\nfunction='a'\n{}", trigger.repeat(8));
    let text = |own: usize| format!("name='x'\n[[step]]\nchain='inner'\n{}", trigger.repeat(own));
    let known = known(&ABC, &[&inner]);
    assert_eq!(plan(&text(8), &known).expect("16 triggers").triggers.len(), 16);
    assert_eq!(plan(&text(9), &known), Err(ChainError::TooManyTriggers));
}

#[test]
fn paths_of_names_stay_short() {
    let long = "l".repeat(63);
    let inner = |name: &str, step: &str| format!("name='{name}'\n[[step]]\n{step}\nname='{long}'\n");
    let known = known(&["a"], &[&inner("one", "function='a'"), &inner("two", "chain='one'")]);
    plan(&inner("fits", "chain='one'"), &known).expect("127 bytes");
    let error = refused(&inner("x", "chain='two'"), &known);
    assert!(error.contains("has a name of 191 bytes; 128 are the most: give shorter names"), "{error}");
}

/// What a plan promises of its stages, wherever they lie; collects the names of steps and labels.
fn check(list: &[Stage], names: &mut Vec<String>, labels: &mut Vec<String>, used: &mut [bool]) {
    let mut room_before = false;
    for stage in list {
        let is_run = matches!(stage, Stage::Run(_));
        assert!(!(room_before && is_run), "two runs that could be one: {list:?}");
        room_before = false;
        match stage {
            Stage::Run(run) => {
                assert!((1..=RUN_MAX).contains(&run.len()));
                room_before = run.len() < RUN_MAX;
                for step in run {
                    names.push(step.name.clone());
                    used[step.function] = true;
                    step.on_error.into_iter().for_each(|handler| used[handler] = true);
                }
            }
            Stage::Parallel(branches) => {
                for branch in branches {
                    labels.push(branch.label.clone());
                    check(&branch.stages, names, labels, used);
                }
            }
            Stage::Map { each, label, .. } => {
                labels.push(label.clone());
                check(each, names, labels, used);
            }
            Stage::When { cases, otherwise } => {
                cases.iter().for_each(|case| check(&case.then, names, labels, used));
                check(otherwise, names, labels, used);
            }
        }
    }
}

/// One `[[step]]` that calls functions and the chains before number `below`.
fn any_step(below: usize) -> impl Strategy<Value = String> {
    let mut called: Vec<String> = ["a", "b", "a-2"].map(String::from).into();
    called.extend((0..below).map(|number| format!("c{number}")));
    let target = || proptest::sample::select(called.clone());
    let function = || proptest::sample::select(vec!["a", "b", "a-2"]);
    let chosen = proptest::option::of(proptest::sample::select(vec!["a", "a-3", "x", "c0"]));
    let does = prop_oneof![
        (function(), function()).prop_map(|(one, other)| format!("function='{one}'\non_error='{other}'")),
        function().prop_map(|one| format!("function='{one}'")),
        target().prop_map(|one| match one.starts_with('c') {
            true => format!("chain='{one}'"),
            false => format!("function='{one}'"),
        }),
        (target(), target()).prop_map(|(one, other)| format!("parallel=['{one}','{other}']")),
        target().prop_map(|one| format!("map='{one}'")),
        (target(), target()).prop_map(|(one, other)| {
            format!("when=[{{field='',equals=1,then='{one}'}}]\notherwise='{other}'")
        }),
    ];
    (does, chosen).prop_map(|(does, chosen)| match chosen {
        Some(name) => format!("[[step]]\n{does}\nname='{name}'\n"),
        None => format!("[[step]]\n{does}\n"),
    })
}

fn any_chain(number: usize) -> impl Strategy<Value = String> {
    let steps = proptest::collection::vec(any_step(number), 1..6);
    let trigger = "[[trigger]]\nfunction='a'\non={every='v'}\n";
    (steps, 0usize..3).prop_map(move |(steps, triggers)| {
        format!("name='c{number}'\n{}{}", steps.concat(), trigger.repeat(triggers))
    })
}

proptest! {
    #[test]
    fn every_plan_keeps_its_promises(texts in (any_chain(0), any_chain(1), any_chain(2), any_chain(3))) {
        let mut known = known(&["a", "b", "a-2"], &[]);
        for text in [texts.0, texts.1, texts.2, texts.3] {
            // Two steps may have been given one name.
            let Ok(spec) = ChainSpec::parse(&text) else { return Ok(()) };
            known.chains.insert(spec.name.clone(), spec.clone());
            let plan = match flatten(&spec, &known) {
                Ok(plan) => plan,
                Err(error) => {
                    let limit = matches!(error, ChainError::TooManySteps | ChainError::TooManyTriggers);
                    prop_assert!(limit, "{}", error);
                    return Ok(());
                }
            };
            let (mut names, mut labels, mut used) = (vec![], vec![], vec![false; plan.functions.len()]);
            check(&plan.stages, &mut names, &mut labels, &mut used);
            for trigger in &plan.triggers {
                labels.push(trigger.label.clone());
                check(&trigger.run, &mut names, &mut labels, &mut used);
            }
            prop_assert!(names.len() <= STEPS_MAX);
            for list in [&names, &labels] {
                prop_assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len(), "{:?}", list);
            }
            prop_assert!(used.iter().all(|used| *used), "a function that nobody calls");
            prop_assert_eq!(plan.functions.iter().collect::<BTreeSet<_>>().len(), plan.functions.len());
        }
    }
}
