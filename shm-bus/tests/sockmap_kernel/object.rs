//! What the compiler has made of the program.

/// The object that the transport embeds.
const OBJECT: &[u8] = include_bytes!("../../../ebpf/spry-bus.bpf.o");

/// rustc holds the BPF target to be single-threaded, so this looks whether the instructions that the protocol
/// stands on are in the object: 8-byte instructions, opcode `STX | ATOMIC | DW`, the operation in the
/// last four bytes.
#[test]
fn the_object_has_the_atomic_instructions() {
    let count = |operation: i32| {
        let is =
            |word: &&[u8]| word[0] == 0xdb && word[2..4] == [0, 0] && word[4..] == operation.to_le_bytes();
        OBJECT.chunks_exact(8).filter(is).count()
    };
    assert!(count(0xf1) >= 3, "compare and swap: claim, give back, answer");
    assert!(count(0xe1) >= 1, "exchange: claimed");
    assert!(count(0x41) >= 1, "fetch and or: the idle bit set");
    assert!(count(0x51) >= 1, "fetch and and: the idle bit cleared");
}

/// Nothing of the machine that built it.
#[test]
fn the_object_names_no_path_of_the_builder() {
    let text = String::from_utf8_lossy(OBJECT);
    for word in ["/home/", "/root/", "/work/", "/tmp/", ".cargo/registry", "rustup"] {
        assert!(!text.contains(word), "{word}");
    }
}
