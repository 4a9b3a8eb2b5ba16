//! Libraries with much in them that is compiled, from the index: each does real work in a process that was forked from a
//! zygote, frozen or not, begun from a layer or by itself, used once or rewound.
//!
//! They bring what freezing and forking could break: BLAS with its threads, allocators and mappings of their own, libxml2's and
//! OpenSSL's state, generators of random numbers. One installation serves all functions of a test, as on a node.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::layers::has_layer_for;
use crate::need_pip;
use crate::wheels::{configuration, from_the_index};

const ALL: [&str; 11] = [
    "numpy==2.2.6",
    "pandas==2.2.3",
    "pillow==11.1.0",
    "lxml==5.3.1",
    "cryptography==44.0.2",
    "python-dateutil==2.9.0.post0",
    "pytz==2025.2",
    "tzdata==2025.2",
    "six==1.17.0",
    "cffi==1.17.1",
    "pycparser==2.22",
];
const PACKAGES: &str = "packages=numpy pandas pillow lxml cryptography";

/// A library's name, what a function imports and makes when it is loaded, and what its handler checks.
const WORK: [(&str, &str, &str); 5] = [
    (
        "numpy",
        "import numpy\nMATRIX = numpy.random.default_rng(1).random((100, 100))\n",
        "assert numpy.allclose(numpy.linalg.inv(MATRIX) @ MATRIX, numpy.eye(100))\n\
         assert abs(numpy.linalg.svd(MATRIX)[1][0] - numpy.linalg.norm(MATRIX, 2)) < 1e-9\n\
         assert numpy.fft.ifft(numpy.fft.fft([1, 2, 3])).real.round().tolist() == [1, 2, 3]\n",
    ),
    (
        "pandas",
        "import io, pandas\nFRAME = pandas.DataFrame({'k': list('abab'), 'v': [1, 2, 3, 4]})\n",
        "assert FRAME.groupby('k')['v'].sum().to_dict() == {'a': 4, 'b': 6}\n\
         FRAME.loc[0, 'v'] = 1\n\
         assert FRAME.merge(FRAME, on='k').shape == (8, 3)\n\
         read = pandas.read_csv(io.StringIO('a,b\\n1,2020-01-02\\n3,2021-03-04\\n'), parse_dates=['b'])\n\
         assert read.b.dt.year.sum() == 4041\n\
         hours = pandas.date_range('2020-03-28', periods=48, freq='h', tz='Europe/Berlin')\n\
         assert len(pandas.Series(range(48), index=hours).resample('D').mean()) == 3\n",
    ),
    (
        "pillow",
        "import io\nfrom PIL import Image\nPICTURE = Image.linear_gradient('L')\n",
        "for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF'):\n    \
             out = io.BytesIO()\n    \
             PICTURE.resize((64, 48), Image.LANCZOS).convert('RGB').save(out, kind)\n    \
             again = Image.open(io.BytesIO(out.getvalue()))\n    \
             again.load()\n    \
             assert again.size == (64, 48)\n",
    ),
    (
        "lxml",
        "from lxml import etree, html\n\
         SHEET = etree.XSLT(etree.XML('<x:stylesheet version=\"1.0\" xmlns:x=\"http://www.w3.org/1999/XSL/Transform\">'\n    \
             '<x:template match=\"/\"><o><x:value-of select=\"/a/b\"/></o></x:template></x:stylesheet>'))\n",
        "tree = etree.fromstring('<a><b n=\"1\">x</b><b n=\"2\">y</b></a>')\n\
         assert tree.xpath('//b[@n=\"2\"]/text()') == ['y']\n\
         assert '<o>x</o>' in str(SHEET(tree))\n\
         assert html.fromstring('<p>a<br>b').text_content() == 'ab'\n\
         try:\n    etree.fromstring('<a>')\n    assert False\nexcept etree.XMLSyntaxError:\n    pass\n",
    ),
    (
        "cryptography",
        "import os\n\
         from cryptography.hazmat.primitives import hashes\n\
         from cryptography.hazmat.primitives.asymmetric import ec\n\
         from cryptography.hazmat.primitives.ciphers.aead import AESGCM\n\
         KEY = AESGCM.generate_key(256)\n",
        "aes, nonce = AESGCM(KEY), os.urandom(12)\n\
         assert aes.decrypt(nonce, aes.encrypt(nonce, b'secret', b'ad'), b'ad') == b'secret'\n\
         key = ec.generate_private_key(ec.SECP256R1())\n\
         key.public_key().verify(key.sign(b'x', ec.ECDSA(hashes.SHA256())), b'x', ec.ECDSA(hashes.SHA256()))\n",
    ),
];

/// A function that does this work, and says so.
fn source(work: &[(&str, &str, &str)]) -> String {
    let mut text = String::new();
    for (_, load, _) in work {
        text += load;
    }
    text += "def main(params):\n";
    for (_, _, checks) in work {
        for line in checks.lines() {
            text += &format!("    {line}\n");
        }
    }
    text + "    return {'good': True}\n"
}

/// Calls it three times, and removes it.
fn call_and_remove(daemon: &Daemon, name: &str, how: &str) {
    for _ in 0..3 {
        let answer = daemon.post(&format!("/function/{name}"), b"{}");
        assert_eq!(answer.json()["good"], true, "{name}, {how}: {}", String::from_utf8_lossy(&answer.body));
    }
    daemon.spry_ok(&["remove", name]);
}

fn began_from_a_layer(daemon: &Daemon, name: &str) -> bool {
    daemon.spry_json(&["describe", name])["start"].get("layer_modules").is_some()
}

/// Deploys it once a layer has all that it imports.
fn deploy_on_a_layer(daemon: &Daemon, name: &str, source: &str, settings: &[&str]) {
    daemon.deploy_python(name, source, settings);
    daemon.until("a layer", |daemon| has_layer_for(daemon, &[name]));
    daemon.deploy_python(name, source, settings);
    assert!(began_from_a_layer(daemon, name), "{}", daemon.spry_json(&["describe", name]));
}

fn frozen(daemon: &Daemon, name: &str) -> Value {
    daemon.spry_json(&["describe", name])["frozen"].clone()
}

#[test]
fn each_works_in_a_fork_of_a_frozen_zygote_and_in_any_other() {
    need_pip!();
    let Some(links) = from_the_index(&ALL) else { return };
    let config = |zygotes: &str| configuration(links.path(), &format!("[zygotes]\n{zygotes}\n"));
    let mut daemon = Daemon::start(&config(""));
    // Keeps what is installed while the others come and go.
    daemon.deploy_python("keeper", "def main(params):\n    return {}\n", &[PACKAGES]);
    let five = source(&WORK);
    for work in &WORK {
        let (name, source) = (work.0, source(std::slice::from_ref(work)));
        let name = &format!("uses-{name}");
        deploy_on_a_layer(&daemon, name, &source, &[PACKAGES, "isolation=request"]);
        assert_eq!(frozen(&daemon, name).get("why"), None, "{name}: {}", frozen(&daemon, name));
        call_and_remove(&daemon, name, "from a layer");
    }
    deploy_on_a_layer(&daemon, "five", &five, &[PACKAGES]);
    assert_eq!(frozen(&daemon, "five").get("why"), None, "{}", frozen(&daemon, "five"));
    call_and_remove(&daemon, "five", "from a layer, instances that stay");

    for zygotes in
        ["layers_memory = 0", "freeze = \"off\"", "freeze = \"off\"\nlayers_memory = 0", "rewind = \"off\""]
    {
        daemon.configure(&config(zygotes));
        daemon.stop_and_start_again();
        for isolation in ["isolation=request", "isolation=instance"] {
            match zygotes.contains("layers_memory") {
                true => daemon.deploy_python("five", &five, &[PACKAGES, isolation]),
                false => deploy_on_a_layer(&daemon, "five", &five, &[PACKAGES, isolation]),
            }
            let how = frozen(&daemon, "five")["how"].clone();
            assert_eq!(how == "memfd", !zygotes.contains("freeze"), "{zygotes}: {how}");
            call_and_remove(&daemon, "five", &format!("{zygotes}, {isolation}"));
        }
    }
    daemon.stop();
}

/// What pandas tries to import, and is there for the one and not for the other.
const FASTER: &str = "import pandas\nfrom pandas.core import nanops\nSERIES = pandas.Series([1.0, None, 3.0])\n\
                      def main(params):\n    \
                      return {'bottleneck': nanops._BOTTLENECK_INSTALLED, 'sum': SERIES.sum(),\n            \
                      'file': pandas.__file__}\n";

#[test]
fn pandas_with_and_without_what_makes_it_faster_lies_once_and_is_imported_for_each() {
    need_pip!();
    let wanted = ALL.iter().copied().chain(["bottleneck==1.5.0"]).collect::<Vec<_>>();
    let Some(links) = from_the_index(&wanted) else { return };
    let daemon = Daemon::start(&configuration(links.path(), ""));
    let functions = [
        ("plain", "packages=pandas", false),
        ("other", "packages=pandas six pillow", false),
        ("faster", "packages=pandas bottleneck", true),
    ];
    let mut files = BTreeSet::new();
    for (name, packages, has) in functions {
        deploy_on_a_layer(&daemon, name, FASTER, &[packages, "limits.memory=256MiB"]);
        let told = daemon.post(&format!("/function/{name}"), b"{}").json();
        assert_eq!((&told["bottleneck"], &told["sum"]), (&has.into(), &4.0.into()), "{name}: {told}");
        files.insert(told["file"].to_string());
    }
    assert_eq!(files.len(), 1, "the same pandas: {files:?}");
    daemon.until("the first two share one, and the third has its own", |daemon| {
        let status = daemon.spry_json(&["status"]);
        let layers = status["layers"].as_array().expect("a list").iter();
        let made = layers.filter(|layer| layer.get("problem").is_none());
        let mut functions: Vec<String> = made.map(|layer| layer["functions"].to_string()).collect();
        functions.sort();
        functions == ["[\"faster\"]", "[\"other\",\"plain\"]"]
    });
    daemon.stop();
}

/// Draws from each source of random numbers that there is, by name; what was drawn at load as well.
const DRAW: &str = r#"
import os, random, secrets, ssl, tempfile, uuid
import numpy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
GENERATOR = numpy.random.default_rng()
STATE = numpy.random.RandomState()
CHILD = numpy.random.SeedSequence().spawn(1)[0]
SPAWNED = numpy.random.Generator(numpy.random.SFC64(CHILD))
SEEDED = numpy.random.default_rng(7)
OLD_SEEDED = numpy.random.RandomState(7)
AT_LOAD = {"random": random.random(), "numpy": numpy.random.rand(), "ssl": ssl.RAND_bytes(8).hex()}
def main(params):
    return {
        "pid": os.getpid(),
        "at load": AT_LOAD,
        "seeded": [float(SEEDED.random()), float(OLD_SEEDED.rand())],
        "drawn": {
            "random": random.random(),
            "random.SystemRandom": random.SystemRandom().random(),
            "numpy.random": numpy.random.rand(),
            "numpy.random.Generator": float(GENERATOR.random()),
            "numpy.random.RandomState": float(STATE.rand()),
            "numpy.random.SeedSequence.spawn": float(SPAWNED.random()),
            "uuid.uuid1": uuid.uuid1().hex,
            "uuid.uuid4": uuid.uuid4().hex,
            "secrets": secrets.token_hex(8),
            "os.urandom": os.urandom(8).hex(),
            "ssl.RAND_bytes": ssl.RAND_bytes(8).hex(),
            "tempfile": next(tempfile._get_candidate_names()),
            "cryptography, AES": AESGCM.generate_key(128).hex(),
            "cryptography, EC": hex(ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value),
        },
    }
"#;

/// The same, with no more than Python has.
const PLAIN: &str = r#"
import os, random, secrets, ssl, uuid
def main(params):
    return {
        "pid": os.getpid(),
        "drawn": {
            "random": random.random(),
            "uuid.uuid4": uuid.uuid4().hex,
            "secrets": secrets.token_hex(8),
            "ssl.RAND_bytes": ssl.RAND_bytes(8).hex(),
        },
    }
"#;

/// Calls it some times; each time each source must say something new, and what was given a seed the same.
fn draws(daemon: &Daemon, name: &str, how: &str) -> Vec<Value> {
    let answers: Vec<Value> =
        (0..5).map(|_| daemon.post(&format!("/function/{name}"), b"{}").json()).collect();
    let sources = answers[0]["drawn"].as_object().unwrap_or_else(|| panic!("{how}: {}", answers[0]));
    for source in sources.keys() {
        let mut seen: Vec<String> =
            answers.iter().map(|answer| answer["drawn"][source].to_string()).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), answers.len(), "{source} repeats itself, {how}: {seen:?}");
    }
    assert!(answers.iter().all(|answer| answer["seeded"] == answers[0]["seeded"]), "{how}: {answers:?}");
    answers
}

#[test]
fn random_numbers_differ_between_instances_and_requests() {
    need_pip!();
    let Some(links) = from_the_index(&ALL) else { return };
    let settings = ["packages=numpy cryptography", "isolation=request"];
    let mut daemon = Daemon::start(&configuration(links.path(), "[zygotes]\nrewind = \"off\"\n"));
    daemon.deploy_python("one", DRAW, &settings);
    draws(&daemon, "one", "forked from a zygote that began by itself");
    deploy_on_a_layer(&daemon, "one", DRAW, &settings);
    deploy_on_a_layer(&daemon, "two", DRAW, &settings);
    let one = draws(&daemon, "one", "forked, from a layer");
    let two = draws(&daemon, "two", "forked, from a layer");
    for source in ["random", "numpy", "ssl"] {
        assert_ne!(
            one[0]["at load"][source], two[0]["at load"][source],
            "{source}, drawn at load from one layer"
        );
    }
    daemon.configure(&configuration(links.path(), "[zygotes]\nrewind = \"auto\"\n"));
    daemon.stop_and_start_again();
    let once = [settings[0], settings[1], "scale.max=1"];
    daemon.deploy_python("one", DRAW, &once);
    draws(&daemon, "one", "rewound, or forked for what that leaves");
    // What this one does can be taken back, so that one process answers for all.
    daemon.deploy_python("plain", PLAIN, &once);
    let plain = draws(&daemon, "plain", "rewound");
    if daemon.spry_json(&["describe", "plain"])["rewound"]["why"].is_null() {
        let pids: BTreeSet<String> = plain.iter().map(|answer| answer["pid"].to_string()).collect();
        assert!(pids.len() < plain.len(), "some are of one process: {plain:?}");
    }
    daemon.stop();
}
