//! `include/spry.h` and the types of `spry_fn::abi` are the same: a C compiler says where it puts every field.

use std::mem::{offset_of, size_of};
use std::process::Command;

use spry_fn::abi::{ABI_VERSION, Code, Header, Part, Request, Response, Slice};

macro_rules! layout {
    ($($c:literal => $rust:ty { $($field:ident),* })*) => {
        vec![$(
            (format!("sizeof(struct {})", $c), size_of::<$rust>()),
            $((format!("offsetof(struct {}, {})", $c, stringify!($field)), offset_of!($rust, $field)),)*
        )*]
    };
}

#[test]
fn the_c_header_has_the_same_layout() {
    let mut expected = layout! {
        "spry_slice" => Slice { data, len }
        "spry_header" => Header { name, value }
        "spry_request" => Request {
            abi_version, header_count, headers, method, path, query, call_id, deadline_unix_ns, part_count, parts,
            body, context
        }
        "spry_part" => Part { name, value }
        "spry_response" => Response {
            context, set_status, add_header, set_body, reserve, commit, pass_through, fail, emit
        }
    };
    let codes = [
        ("SPRY_OK", Code::Ok),
        ("SPRY_BAD_STATUS", Code::BadStatus),
        ("SPRY_BAD_HEADER", Code::BadHeader),
        ("SPRY_TOO_LARGE", Code::TooLarge),
        ("SPRY_FULL", Code::Full),
        ("SPRY_MISUSE", Code::Misuse),
        ("SPRY_BAD_NAME", Code::BadName),
        ("SPRY_TOO_MANY", Code::TooMany),
        ("SPRY_NO_CHAIN", Code::NoChain),
        ("SPRY_CLOSED", Code::Closed),
    ];
    expected.extend(codes.map(|(name, code)| (name.to_owned(), code as usize)));
    expected.push(("SPRY_ABI_VERSION".to_owned(), ABI_VERSION as usize));

    let dir = std::env::temp_dir().join(format!("spry-layout-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a folder");
    for compiler in ["cc", "c++"] {
        let asserts: Vec<String> = expected
            .iter()
            .map(|(what, is)| format!("typedef char check_{}[({what}) == {is} ? 1 : -1];\n", names(what)))
            .collect();
        let source = dir.join(if compiler == "cc" { "layout.c" } else { "layout.cc" });
        std::fs::write(&source, format!("#include \"spry.h\"\nSPRY_FUNCTION\n{}", asserts.concat()))
            .expect("write");
        let mut command = Command::new(compiler);
        command.args(["-Wall", "-Werror", "-fsyntax-only", "-I"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/include")).arg(&source);
        let output = command.output().unwrap_or_else(|error| panic!("start {compiler}: {error}"));
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}

fn names(what: &str) -> String {
    what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
