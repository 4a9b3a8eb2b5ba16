use proptest::prelude::*;

use super::*;

/// A distribution: its name, and its files with the hashes that its RECORD has of them.
type Given<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// As pip leaves it: the files, with what is only there once, and the RECORDs.
fn installed(given: &[Given<'_>]) -> (Vec<Found>, BTreeMap<String, String>) {
    let (mut paths, mut records) = (BTreeSet::new(), BTreeMap::new());
    for (name, files) in given {
        let info = |file: &str| format!("{name}.dist-info/{file}");
        let mut record = String::new();
        for (path, hash) in *files {
            record.push_str(&format!("{path},{hash},1\n"));
            paths.insert(path.trim_start_matches("../").to_owned());
        }
        record.push_str(&format!("{},sha256=m,1\n{},,\n", info("METADATA"), info("RECORD")));
        paths.extend([info("METADATA"), info("RECORD")]);
        records.insert(info("RECORD"), record);
    }
    let found = paths.into_iter().map(|path| Found { path, searches: Vec::new() });
    (found.collect(), records)
}

/// What is done to it then.
type Change<'a> = &'a dyn Fn(&mut Vec<Found>, &mut BTreeMap<String, String>);

fn split_of(given: &[Given<'_>]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let (files, records) = installed(given);
    let parts = split(&files, &records)?;
    let of = |part: Part| {
        let files = part.files.iter().map(|at| files[*at].path.clone());
        let files = files.filter(|path| !path.contains(INFO)).collect();
        (part.name, files)
    };
    Ok(parts.into_iter().map(of).collect())
}

#[test]
fn every_distribution_gets_what_its_record_says() {
    let parts = split_of(&[
        (
            "numpy-2.2.6",
            &[
                ("numpy/__init__.py", "sha256=a"),
                ("numpy.libs/libx.so", "sha256=b"),
                ("../../bin/f2py", "sha256=c"),
            ],
        ),
        ("six-1.17.0", &[("six.py", "sha256=d"), ("../../bin/six", "sha256=e")]),
    ])
    .expect("split");
    assert_eq!(parts["numpy-2.2.6"], ["bin/f2py", "numpy.libs/libx.so", "numpy/__init__.py"]);
    assert_eq!(parts["six-1.17.0"], ["bin/six", "six.py"]);
}

#[test]
fn a_namespace_may_be_in_several_and_a_package_only_in_one() {
    let namespace: [Given<'_>; 2] = [
        ("google_a-1", &[("google/cloud/a/__init__.py", "sha256=a"), ("google/py.typed", "sha256=same")]),
        ("google_b-1", &[("google/cloud/b/__init__.py", "sha256=b"), ("google/py.typed", "sha256=same")]),
    ];
    let parts = split_of(&namespace).expect("split");
    assert!(parts.values().all(|files| files.len() == 2), "the same file is in both: {parts:?}");
    let refused = |given: &[Given<'_>], says: &str| {
        let why = split_of(given).expect_err(says);
        assert!(why.contains(says), "{why} is not {says}");
    };
    refused(
        &[("a-1", &[("x/__init__.py", "sha256=a")]), ("b-1", &[("x/plugin.py", "sha256=b")])],
        "x is of a-1 and b-1",
    );
    refused(
        &[("a-1", &[("n/x.py", "sha256=a")]), ("b-1", &[("n/x/y.py", "sha256=b")])],
        "n/x is of a-1 and b-1",
    );
    refused(
        &[("a-1", &[("x.py", "sha256=a")]), ("b-1", &[("x.cpython-311.so", "sha256=b")])],
        "x is of a-1 and b-1",
    );
    refused(&[("a-1", &[("x.py", "sha256=a")]), ("b-1", &[("x.py", "sha256=b")])], "x.py is of a-1 and b-1");
    refused(&[("a-1", &[("x.py", "")]), ("b-1", &[("x.py", "")])], "x.py is of a-1 and b-1");
    refused(&[("a-1", &[("x.py", "sha256=a")]), ("b-1", &[("x.py", "sha256=a")])], "x is of a-1 and b-1");
}

#[test]
fn what_is_for_all_or_of_nobody_keeps_a_set_whole() {
    let whole = |change: Change<'_>, says: &str| {
        let (mut files, mut records) = installed(&[("a-1", &[("a.py", "sha256=a")])]);
        change(&mut files, &mut records);
        let why = split(&files, &records).expect_err(says);
        assert!(why.contains(says), "{why} is not {says}");
    };
    let add = |path: &'static str| {
        move |files: &mut Vec<Found>, records: &mut BTreeMap<String, String>| {
            files.push(Found { path: path.into(), searches: vec![] });
            if path.ends_with(".pth") {
                records.values_mut().for_each(|record| record.push_str(&format!("{path},sha256=p,1\n")));
            }
        }
    };
    whole(&add("a-nspkg.pth"), "a-nspkg.pth is for every process");
    whole(&add("stray.py"), "stray.py is in no RECORD");
    whole(&add("old.egg-info/PKG-INFO"), "old.egg-info/PKG-INFO is in no RECORD");
    whole(&add("b-1.dist-info/METADATA"), "b-1 has no RECORD");
    let record = |text: &'static str| {
        move |_: &mut Vec<Found>, records: &mut BTreeMap<String, String>| {
            records.insert("a-1.dist-info/RECORD".into(), text.into());
        }
    };
    whole(&record("a.py"), "can't be read");
    whole(&record("\"a.py,sha256=a,1"), "can't be read");
    whole(&record("../x/../a.py,sha256=a,1"), "a.py is in no RECORD");
    whole(&record(""), "a.py is in no RECORD");
    let rename = |_: &mut Vec<Found>, records: &mut BTreeMap<String, String>| {
        records.insert("b$-1.dist-info/RECORD".into(), String::new());
    };
    whole(&rename, "no name for a folder");
}

#[test]
fn libraries_that_look_for_one_another_stay_together() {
    let with = |search: &str| {
        let given: [Given<'_>; 3] = [
            ("torch-2", &[("torch/lib/libtorch.so", "sha256=a"), ("torch/lib/libc10.so", "sha256=b")]),
            (
                "cublas-1",
                &[
                    ("nvidia/cublas/lib/libcublas.so.12", "sha256=c"),
                    ("nvidia/cublas/include/x.h", "sha256=d"),
                ],
            ),
            ("cudnn-1", &[("nvidia/cudnn/lib/libcudnn.so.9", "sha256=e")]),
        ];
        let (mut files, records) = installed(&given);
        let library = files.iter_mut().find(|file| file.path.ends_with("libtorch.so")).expect("there");
        library.searches.push(search.to_owned());
        split(&files, &records)
    };
    let why = with("$ORIGIN/../../nvidia/cublas/lib").expect_err("whole");
    assert!(
        why.contains("torch/lib/libtorch.so looks for libraries in nvidia/cublas/lib, which cublas-1 has"),
        "{why}"
    );
    for fine in [
        "$ORIGIN",
        "${ORIGIN}/../lib",
        "$ORIGIN/../../nvidia/cublas/include",
        "$ORIGIN/../../../../usr/lib",
        "/usr/lib",
        "$ORIGIN/../../none",
    ] {
        assert_eq!(with(fine).map(|parts| parts.len()), Ok(3), "{fine}");
    }
}

#[test]
fn how_it_came_to_be_installed_is_no_part_of_a_distribution() {
    let record = |lines: &str| {
        let text = format!(
            "a.py,sha256=a,1\n\"odd, \"\"name\"\".py\",sha256=o,1\na-1.dist-info/METADATA,sha256=m,1\n{lines}a-1.dist-info/RECORD,,\n"
        );
        let names = [
            "a.py",
            "odd, \"name\".py",
            "a-1.dist-info/METADATA",
            "a-1.dist-info/RECORD",
            "a-1.dist-info/REQUESTED",
        ];
        let files = names.map(|path| Found { path: path.into(), searches: vec![] });
        split(&files, &[("a-1.dist-info/RECORD".into(), text)].into()).expect("split").remove(0)
    };
    let plain = record("");
    let asked_for = record("a-1.dist-info/REQUESTED,sha256=x,0\n__pycache__/a.cpython-311.pyc,,\n");
    assert_eq!(plain, asked_for);
    assert_eq!(plain.files, [0, 1, 2]);
}

proptest! {
    /// Whatever RECORDs say: what is split has every file, each in the folder of somebody who says that it is his, and no module
    /// of one folder is in another.
    #[test]
    fn whatever_records_say_nothing_is_lost(
        given in prop::collection::vec(prop::collection::btree_map("[ab](/[ab]){0,2}(\\.py|\\.so|/__init__\\.py)", "[xy]?", 0..6), 0..4),
        drop in any::<prop::sample::Index>(),
    ) {
        let names: Vec<String> = (0..given.len()).map(|at| format!("d{at}-1")).collect();
        let lists: Vec<Vec<(&str, &str)>> =
            given.iter().map(|files| files.iter().map(|(path, hash)| (path.as_str(), hash.as_str())).collect()).collect();
        let all: Vec<Given<'_>> = names.iter().zip(&lists).map(|(name, list)| (name.as_str(), list.as_slice())).collect();
        let (files, records) = installed(&all);
        if let Ok(parts) = split(&files, &records) {
            for (at, file) in files.iter().enumerate().filter(|(_, file)| !file.path.ends_with("RECORD")) {
                prop_assert!(parts.iter().any(|part| part.files.contains(&at)), "{} is lost", file.path);
            }
            let modules = |part: &Part| -> BTreeSet<String> {
                let paths = part.files.iter().map(|at| files[*at].path.as_str());
                let split = paths.map(|path| path.rsplit_once('/').unwrap_or(("", path)));
                split.filter_map(|(folder, file)| Some(format!("{folder}/{}", module(file)?))).collect()
            };
            for (at, one) in parts.iter().enumerate() {
                for other in &parts[at + 1..] {
                    prop_assert!(modules(one).is_disjoint(&modules(other)));
                }
            }
        }
        if !files.is_empty() {
            let mut fewer = files.clone();
            fewer.remove(drop.index(files.len()));
            let _ = split(&fewer, &records);
        }
    }
}
