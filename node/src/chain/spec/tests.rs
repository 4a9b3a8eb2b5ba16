use super::*;
use proptest::prelude::*;
use serde_json::json;

fn refused(text: &str) -> String {
    ChainSpec::parse(text).expect_err(text).to_string()
}

/// The same for the keys of one step.
fn step_refused(keys: &str) -> String {
    refused(&format!("name = 'c'\n[[step]]\nfunction = 'first'\n[[step]]\n{keys}\n"))
}

/// And of one trigger.
fn trigger_refused(keys: &str) -> String {
    refused(&format!("name = 'c'\n[[step]]\nfunction = 'f'\n[[trigger]]\n{keys}\n"))
}

fn names<'a>(names: impl IntoIterator<Item = &'a Name>) -> Vec<&'a str> {
    names.into_iter().map(Name::as_str).collect()
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

const FULL: &str = r#"
name = "photo"
timeout = "10s"
payload = "1MiB"
[[step]]
function = "decode"
name = "first"
retry = 2
on_error = "mend"
[[step]]
parallel = ["a", "b"]
[[step]]
map = "resize"
at_once = 4
[[step]]
name = "choose"
when = [
  { field = "/kind", equals = "image", then = "resize" },
  { field = "/pages/0", equals = 1, then = "scan" },
  { field = "", equals = 0.5, then = "half" },
  { field = "/a~1b", equals = true, then = "a" },
]
otherwise = "keep"
[[step]]
chain = "rest"
[[trigger]]
function = "store"
on = { every = "thumb" }
[[trigger]]
chain = "batch"
on = { count = 10, of = "thumb" }
[[trigger]]
function = "join"
on = { set = ["left", "right_2"] }
[[trigger]]
function = "store"
on = { window = "10ms", of = "thumb" }
"#;

#[test]
fn every_key_is_read() {
    let spec = ChainSpec::parse(FULL).expect("the contract's own keys");
    assert_eq!(spec.name.as_str(), "photo");
    assert_eq!((spec.timeout, spec.payload), (Period::seconds(10), Size::mib(1)));
    let does: Vec<&Does> = spec.steps.iter().map(|step| &step.does).collect();
    assert_eq!(spec.steps[0].name, Some(name("first")));
    let on_error = Some(name("mend"));
    assert_eq!(*does[0], Does::Function { function: name("decode"), retry: 2, on_error });
    assert_eq!(*does[1], Does::Parallel(vec![name("a"), name("b")]));
    assert_eq!(*does[2], Does::Map { with: name("resize"), at_once: 4 });
    let Does::When { cases, otherwise } = does[3] else { panic!("{:?}", does[3]) };
    assert_eq!(*otherwise, Some(name("keep")));
    let cases: Vec<_> =
        cases.iter().map(|case| (case.field.as_str(), case.equals.clone(), case.then.as_str())).collect();
    assert_eq!(
        cases,
        [
            ("/kind", json!("image"), "resize"),
            ("/pages/0", json!(1), "scan"),
            ("", json!(0.5), "half"),
            ("/a~1b", json!(true), "a")
        ]
    );
    assert_eq!(*does[4], Does::Chain(name("rest")));
    let on: Vec<_> = spec.triggers.iter().map(|trigger| trigger.on.clone()).collect();
    assert_eq!(
        on,
        [
            On::Every("thumb".into()),
            On::Count { name: "thumb".into(), count: 10 },
            On::Set(vec!["left".into(), "right_2".into()]),
            On::Window { name: "thumb".into(), span: Duration::from_millis(10) },
        ]
    );
    assert_eq!(spec.triggers[1].starts, Starts::Chain(name("batch")));
    assert_eq!(
        names(spec.uses()),
        ["a", "b", "batch", "decode", "half", "join", "keep", "mend", "resize", "rest", "scan", "store"]
    );
}

#[test]
fn what_is_silent_gets_its_default() {
    let spec =
        ChainSpec::parse("name = 'c'\n[[step]]\nfunction = 'f'\n[[step]]\nmap = 'f'\n").expect("valid");
    assert_eq!((spec.timeout, spec.payload), (Period::seconds(30), Size::mib(6)));
    assert_eq!(spec.steps[0].does, Does::Function { function: name("f"), retry: 0, on_error: None });
    assert_eq!(spec.steps[1].does, Does::Map { with: name("f"), at_once: 8 });
    assert!(spec.triggers.is_empty());
}

#[test]
fn the_example_of_the_design_is_a_chain() {
    let text = "# chain.toml\nname = \"photo\"\n[[step]]\nfunction = \"decode\"\n[[step]]\nfunction = \
                \"resize\"\n[[step]]\nfunction = \"encode\"\n";
    assert_eq!(names(ChainSpec::parse(text).expect("valid").uses()), ["decode", "encode", "resize"]);
}

#[test]
fn unknown_keys_and_broken_texts_are_refused_with_their_line() {
    for (text, says) in [
        ("name = 'c'\ncolour = 1\n", &["line 2", "unknown field `colour`"][..]),
        ("name = 'c'\n[[step]]\nfunction = 'f'\nretries = 2\n", &["line 4", "unknown field `retries`"]),
        ("name = 'c'\n[[trigger]]\nfunction = 'f'\non = { each = 'x' }\n", &["line 4", "`each`"]),
        ("name = 'c'\n[[step]]\nwhen = [{ field = '/a', then = 'f' }]\n", &["missing field `equals`"]),
        ("name = [", &["line 1"]),
        ("name = 3", &["invalid type"]),
        ("name = 'c'\ntimeout = true\n[[step]]\nfunction = 'f'\n", &["text with a unit"]),
    ] {
        let error = refused(text);
        assert!(says.iter().all(|says| error.contains(says)), "{text}: {error}");
    }
    let long = format!("#{}", "x".repeat(FILE_MAX as usize));
    assert_eq!(refused(&long), "the chain's text is 262145 bytes long; 262144 are the most that is read");
}

#[test]
fn every_value_has_its_bounds() {
    let top = |keys: &str| refused(&format!("{keys}\n[[step]]\nfunction = 'f'\n"));
    for (keys, says) in [
        ("", "`name` is missing: write name = \"my-chain\""),
        ("name = 'A'", "name is \"A\", but must be 1 to 63 small letters, digits and hyphens"),
        ("name = 'c'\ntimeout = '0ms'", "timeout is 0s, but must be between 1ms and 1d"),
        ("name = 'c'\ntimeout = '25h'", "timeout is 25h, but must be between 1ms and 1d"),
        ("name = 'c'\ntimeout = 30", "timeout: \"30\" has no unit"),
        ("name = 'c'\npayload = '1GB'\ntimeout = 'x'", "timeout: \"x\" does not start with a whole number"),
        ("name = 'c'\npayload = 1023", "payload is 1023B, but must be between 1KiB and 1GiB"),
        ("name = 'c'\npayload = '2GiB'", "payload is 2GiB, but must be between 1KiB and 1GiB"),
        ("name = 'c'\npayload = -1", "payload: \"-1\" does not start with a whole number"),
    ] {
        let error = top(keys);
        assert!(error.starts_with(says), "{keys}: {error}");
    }
    assert_eq!(refused("name = 'c'"), "`step` is missing: a chain has at least one [[step]]");
}

#[test]
fn a_step_does_exactly_one_thing_with_the_options_of_that() {
    for (keys, says) in [
        ("name = 'x'", "step 2 says nothing to do: write one of function, chain, parallel, map, when"),
        ("function = 'f'\nmap = 'g'", "step 2 has function and map, but can have only one"),
        ("chain = 'f'\nretry = 1", "step 2 has retry, which goes with function only, not with chain"),
        ("parallel = ['f']\non_error = 'g'", "step 2 has on_error, which goes with function only"),
        ("function = 'f'\nat_once = 1", "step 2 has at_once, which goes with map only, not with function"),
        ("map = 'f'\notherwise = 'g'", "step 2 has otherwise, which goes with when only, not with map"),
        ("function = 'F'", "step 2: function is \"F\", but must be"),
        ("chain = ''", "step 2: chain is \"\", but must be"),
        ("map = 'a/b'", "step 2: map is \"a/b\", but must be"),
        ("parallel = ['a', 'B']", "step 2: parallel is \"B\", but must be"),
        ("function = 'f'\non_error = '-'", "step 2: on_error is \"-\", but must be"),
        ("function = 'f'\nname = 'a b'", "step 2: name is \"a b\", but must be"),
        ("function = 'f'\nretry = 11", "step 2: retry is 11, but must be between 0 and 10"),
        ("function = 'f'\nretry = -1", "step 2: retry is -1, but must be between 0 and 10"),
        ("map = 'f'\nat_once = 0", "step 2: at_once is 0, but must be between 1 and 64"),
        ("map = 'f'\nat_once = 65", "step 2: at_once is 65, but must be between 1 and 64"),
        ("parallel = []", "step 2: parallel is 0 branches, but must be 1 to 32"),
        ("when = []", "step 2: when is 0 cases, but must be 1 to 32"),
        (
            "when = [{ field = '/a', equals = 1, then = 'F' }]",
            "step 2: case 1 of when: then is \"F\", but must be",
        ),
        (
            "when = [{ field = 'kind', equals = 1, then = 'f' }]",
            "step 2: case 1 of when: field is \"kind\", but must be a JSON pointer",
        ),
        (
            "when = [{ field = '/a~2', equals = 1, then = 'f' }]",
            "step 2: case 1 of when: field is \"/a~2\", but must be a JSON pointer",
        ),
        ("when = [{ field = '/a~', equals = 1, then = 'f' }]", "step 2: case 1 of when: field is"),
        (
            "when = [{ field = '', equals = [1], then = 'f' }]",
            "step 2: case 1 of when: equals is [1], but must be a text, a number, true or false",
        ),
        ("when = [{ field = '', equals = nan, then = 'f' }]", "step 2: case 1 of when: equals is nan"),
        (
            "when = [{ field = '', equals = 2020-01-01, then = 'f' }]",
            "step 2: case 1 of when: equals is 2020-01-01",
        ),
        ("when = [{ field = '', equals = 1, then = 'f' }]\notherwise = 'O'", "step 2: otherwise is \"O\""),
    ] {
        let error = step_refused(keys);
        assert!(error.starts_with(says), "{keys}: {error}");
    }
    let long = format!("when = [{{ field = '/{}', equals = 1, then = 'f' }}]", "x".repeat(POINTER_MAX));
    assert!(step_refused(&long).ends_with("but must be at most 256 bytes"));
}

#[test]
fn chosen_names_are_unique() {
    let text = "name = 'c'\n[[step]]\nfunction = 'f'\nname = 'x'\n[[step]]\nmap = 'g'\nname = 'x'\n";
    assert_eq!(refused(text), "step 2 is named \"x\", as an earlier step is");
}

#[test]
fn a_trigger_starts_one_thing_on_one_condition() {
    for (keys, says) in [
        ("on = { every = 'x' }", "trigger 1 starts nothing: write one of function, chain"),
        ("function = 'f'\nchain = 'c'\non = { every = 'x' }", "trigger 1 has function and chain, but can"),
        ("function = 'f'", "`trigger 1: on` is missing: write on = { every = \"value\" }"),
        ("function = 'f'\non = {}", "trigger 1: on must have exactly one of every, count, set, window"),
        ("function = 'f'\non = { every = 'x', count = 1 }", "trigger 1: on must have exactly one of"),
        ("function = 'f'\non = { every = 'X' }", "trigger 1: on.every is \"X\", but must be 1 to 64 small"),
        ("function = 'f'\non = { every = 'x', of = 'y' }", "trigger 1: on has of, which goes with count and"),
        ("function = 'f'\non = { set = ['x'], of = 'y' }", "trigger 1: on has of, which goes with count and"),
        ("function = 'f'\non = { count = 2 }", "trigger 1: on needs `of`"),
        ("function = 'f'\non = { window = '1s' }", "trigger 1: on needs `of`"),
        ("function = 'f'\non = { count = 0, of = 'x' }", "trigger 1: on.count is 0, but must be between 1"),
        ("function = 'f'\non = { count = 257, of = 'x' }", "trigger 1: on.count is 257, but must be between"),
        ("function = 'f'\non = { count = 2, of = '' }", "trigger 1: on.of is \"\", but must be 1 to 64"),
        ("function = 'f'\non = { set = [] }", "trigger 1: on.set is 0 names, but must be 1 to 32"),
        ("function = 'f'\non = { set = ['x', 'x'] }", "trigger 1: on names \"x\" twice"),
        ("function = 'f'\non = { set = ['x', 'é'] }", "trigger 1: on.set is \"é\", but must be"),
        ("function = 'f'\non = { window = '0s', of = 'x' }", "trigger 1: on.window is 0s, but must be"),
        ("function = 'f'\non = { window = '2m', of = 'x' }", "trigger 1: on.window is 2m, but must be"),
        ("function = 'f'\non = { window = 10, of = 'x' }", "trigger 1: on.window: \"10\" has no unit"),
        ("function = 'F'\non = { every = 'x' }", "trigger 1: function is \"F\", but must be"),
    ] {
        let error = trigger_refused(keys);
        assert!(error.starts_with(says), "{keys}: {error}");
    }
    let long = format!("function = 'f'\non = {{ every = '{}' }}", "x".repeat(VALUE_NAME_MAX + 1));
    assert!(trigger_refused(&long).contains("must be 1 to 64"));
}

#[test]
fn counts_have_a_most_and_that_is_allowed() {
    let steps = |count: usize| "[[step]]\nfunction = 'f'\n".repeat(count);
    let branches = |count: usize| format!("[[step]]\nparallel = [{}]\n", "'f', ".repeat(count));
    let cases = |count: usize| {
        let case = "{ field = '/a', equals = 1, then = 'f' }, ";
        format!("[[step]]\nwhen = [{}]\n", case.repeat(count))
    };
    let triggers = |count: usize| {
        format!("{}{}", steps(1), "[[trigger]]\nfunction = 'f'\non = { every = 'x' }\n".repeat(count))
    };
    let set = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("'v{number}'")).collect();
        format!("{}[[trigger]]\nfunction = 'f'\non = {{ set = [{}] }}\n", steps(1), names.join(","))
    };
    let check = |text: String| ChainSpec::parse(&format!("name = 'c'\n{text}"));
    check(steps(STEPS_MAX)).expect("as many steps as can be");
    assert_eq!(check(steps(STEPS_MAX + 1)), Err(ChainError::TooManySteps));
    check(branches(BRANCHES_MAX)).expect("as many branches as can be");
    assert!(matches!(check(branches(BRANCHES_MAX + 1)), Err(ChainError::Bound { .. })));
    check(cases(CASES_MAX)).expect("as many cases as can be");
    assert!(matches!(check(cases(CASES_MAX + 1)), Err(ChainError::Bound { .. })));
    check(triggers(TRIGGERS_MAX)).expect("as many triggers as can be");
    assert_eq!(check(triggers(TRIGGERS_MAX + 1)), Err(ChainError::TooManyTriggers));
    check(set(SET_MAX)).expect("as many names as can be");
    assert!(matches!(check(set(SET_MAX + 1)), Err(ChainError::Bound { .. })));
}

proptest! {
    #[test]
    fn no_text_panics_the_reader(text in "(?s).{0,300}") {
        let _ = ChainSpec::parse(&text);
    }

    #[test]
    fn no_value_panics_and_every_accepted_one_is_within_bounds(
        retry in any::<i64>(), at_once in any::<i64>(), count in any::<i64>(), field in "[ -~]{0,20}",
        span in "[0-9]{1,20}(ms|s|m|h|d|x)?",
    ) {
        let text = format!(
            "name='c'\ntimeout={span:?}\n[[step]]\nfunction='f'\nretry={retry}\n[[step]]\nmap='f'\n\
             at_once={at_once}\n[[step]]\nwhen=[{{field={field:?},equals=1,then='f'}}]\n[[trigger]]\n\
             function='f'\non={{count={count},of='x'}}\n[[trigger]]\nfunction='f'\n\
             on={{window={span:?},of='x'}}\n"
        );
        if let Ok(spec) = ChainSpec::parse(&text) {
            prop_assert_eq!(&spec.steps[1].does, &Does::Map { with: name("f"), at_once: at_once as usize });
            prop_assert!((1..=AT_ONCE_MAX as i64).contains(&at_once));
            prop_assert!((0..=i64::from(RETRY_MAX)).contains(&retry));
            prop_assert!((1..=COUNT_MAX as i64).contains(&count));
        }
    }
}
