//! What it answers is a lie: about where it lies, how long it is, what it is, or it changes meanwhile. Whoever reads it
//! (the next step, the gateway, or spryd on the way to a condition, a list or a map) sees through it, or sees the
//! hostile function's own nonsense.

use spry_wire::frame::{Joining, ListHead, Origin, Part, Place, ViewHead};

use super::super::client::Response;
use super::Scene;
use super::floods::Held;

/// Stand for its own outbox and its chain's inbox; it puts their names in.
const OWN: u32 = 0xffff_fff0;
const INBOX: u32 = 0xffff_fff1;

/// Where its answer goes in these: to a function, to the client, and through spryd's own hands.
const READERS: [&str; 6] = ["attacked", "ends", "judged", "mapped", "gathered", "chain-hostile"];

/// Makes the chains in which spryd itself looks at its answer.
fn set_up(scene: &Scene) {
    let hostile = "[[step]]\nfunction = \"chain-hostile\"\n";
    let judge = "[[step]]\nwhen = [{ field = \"/a\", equals = 1, then = \"tail\" }]\n";
    scene.apply("judged", &format!("name\n{hostile}{judge}"));
    scene.apply("mapped", &format!("name\n{hostile}[[step]]\nmap = \"copy\"\n"));
    scene.apply("gathered", "name\n[[step]]\nparallel = [\"chain-hostile\", \"copy\"]\n");
}

/// Tells a lie to every reader. It comes to an answer without a secret, and the next call is served.
fn tell(scene: &Scene, query: &str, frame: &[u8]) -> Vec<Response> {
    let told = READERS.map(|reader| scene.call(reader, query, frame));
    for (response, reader) in told.iter().zip(READERS) {
        let is_answer = matches!(response.status, 200 | 413 | 500 | 502 | 507);
        assert!(is_answer, "{reader}?{query}: {} {}", response.status, response.text());
    }
    scene.serves_on(query);
    told.into()
}

pub(super) fn about_places(scene: &Scene) {
    set_up(scene);
    let far = [
        "offset=0xffffffff",
        "offset=0xfffffff0&length=0xffffffff",
        "length=0xffffffff",
        "length=0x10000000",
    ];
    let odd = ["length=0", "length=7", "length=63", "offset=1", "offset=0&length=4096"];
    let names = ["generation=0", "generation=2", "segment=0", "segment=0xffffffff", "segment=0x80000000"];
    for lie in far.into_iter().chain(odd).chain(names) {
        for response in tell(scene, &format!("do=answer&{lie}"), b"value") {
            assert_ne!(response.status, 200, "{lie}: {}", response.text());
        }
        // The same as the text of a failure.
        tell(scene, &format!("do=answer&flags=1&{lie}"), b"value");
    }
    for segment in 1..40 {
        tell(scene, &format!("do=answer&segment={segment}&offset=0&length=0x10000"), b"value");
    }
    // Into its chain's inbox, wherever.
    for offset in (0..4096).step_by(320) {
        tell(scene, &format!("do=answer&segment=0xfffffff1&offset={offset}&length=4096"), b"value");
    }
    tell(scene, "do=answer&segment=0xfffffff1&offset=0&length=0x4000000", b"value");
    scene.neighbours_are_well();
}

/// The start of a head: its length, a status, a kind; then as it comes.
fn head(len: u32, status: u16, kind: u8, rest: &[u32]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(len.to_le_bytes());
    frame.extend(status.to_le_bytes());
    frame.extend([kind, 0]);
    rest.iter().for_each(|word| frame.extend(word.to_le_bytes()));
    frame.resize(512, b' ');
    frame
}

pub(super) fn about_frames(scene: &Scene) {
    set_up(scene);
    let lengths = [0, 1, 32, 63, 65, 1024, 64 * 1024, 256 * 1024, 0x7fff_ffc0, 0xffff_ffff];
    let mut lies: Vec<Vec<u8>> = lengths.map(|len| head(len, 200, 1, &[0, 0, 0])).into();
    lies.extend([0, 4, 5, 127, 255].map(|kind| head(64, 200, kind, &[0, 0, 0])));
    lies.extend([0, 1, 99, 100, 199, 600, 999, 65535].map(|status| head(64, status, 1, &[0, 0, 0])));
    for kind in 0..4 {
        // Counts of headers, lengths of their names and values, counts of parts, absurd each.
        for absurd in [257, 2049, 0x4000_0000, 0xffff_ffff] {
            lies.push(head(128, 200, kind, &[0, 0, absurd]));
            lies.push(head(128, 200, kind, &[0, 0, 1, absurd]));
            lies.push(head(128, 200, kind, &[0, 0, 1, 0, absurd]));
            lies.push(head(128, 200, kind, &[0, 0, 0, absurd]));
            lies.push(head(128, 200, kind, &[absurd, absurd, 0, 1, 0, OWN, 0, absurd, absurd]));
        }
    }
    lies.push(vec![0xa5; 512]);
    lies.push(vec![0; 512]);
    for (number, lie) in lies.iter().enumerate() {
        tell(scene, &format!("do=answer&number={number}"), lie);
    }
    // As the text of a failure, and as a frame that another's request is to be found by.
    for origin in [0, 64, 4096, 0x0400_0000, 0xffff_ffff] {
        tell(scene, &format!("do=answer&origin={origin}"), &head(64, 200, 1, &[origin, 4096, 0]));
    }
}

fn place(segment: u32, offset: u32, length: u32) -> Place {
    Place { segment, generation: 1, offset, length }
}

fn view(place: Place) -> Vec<u8> {
    let mut out = Vec::new();
    let headers = vec![("content-type", &b"application/json"[..])];
    let head = ViewHead { origin: Origin::default(), headers, part: Part { name: "", place } };
    head.encode(&mut out).expect("a small head");
    out.resize(out.len().max(128), 0);
    out
}

fn list(joining: Joining, places: &[Place]) -> Vec<u8> {
    let mut out = Vec::new();
    let parts = places.iter().map(|place| Part { name: "x", place: *place }).collect();
    ListHead { origin: Origin::default(), joining, parts }
        .encode(&mut out)
        .expect("a head within its bounds");
    out.resize(out.len().max(128), 0);
    out
}

pub(super) fn about_parts(scene: &Scene) {
    set_up(scene);
    for segment in (0..40).chain([OWN, INBOX]) {
        let there = place(segment, 0, 0x1000);
        tell(scene, &format!("do=answer&view={segment}"), &view(there));
        tell(scene, &format!("do=answer&list={segment}"), &list(Joining::Json, &[there, place(OWN, 0, 64)]));
    }
    scene.neighbours_are_well();
}

pub(super) fn about_sizes(scene: &Scene) {
    set_up(scene);
    let held = Held::by(scene);
    let large = [(OWN, 0, 1 << 20), (INBOX, 64, 0x1000_0000), (INBOX, 0, 0xffff_ffff)];
    for (segment, offset, length) in large {
        let there = place(segment, offset, length);
        tell(scene, "do=answer&view=1", &view(there));
        for joining in [Joining::Json, Joining::Framed] {
            tell(scene, "do=answer&list=1", &list(joining, &[there; 40]));
        }
    }
    tell(scene, "do=answer&list=2048", &list(Joining::Framed, &[place(INBOX, 0, 64); 2048]));
    held.is_bounded(scene, "values of enormous sizes");
}

pub(super) fn that_change(scene: &Scene) {
    set_up(scene);
    let response = head(64, 200, 1, &[0, 64, 0]);
    let forged = list(Joining::Framed, &[place(2, 0, 4096), place(INBOX, 0, 4096), place(OWN, 0, 64)]);
    let long = head(256 * 1024, 200, 3, &[0, 0, 0xffff_ffff, 0xffff_ffff]);
    let headers = head(512, 200, 1, &[0, 64, 1, 400]);
    let frames: Vec<u8> = [response, forged, long, headers]
        .into_iter()
        .flat_map(|mut frame| {
            frame.resize(512, 0);
            frame
        })
        .collect();
    for reader in READERS {
        for _ in 0..120 {
            let response = scene.call(reader, "do=race&calls=40", &frames);
            assert!(matches!(response.status, 200 | 413 | 500 | 502 | 507), "{reader}: {}", response.text());
        }
        scene.serves_on(reader);
    }
}
