//! The fuzz target's body on bytes that proptest makes up: a short look at every `cargo test`, without a
//! sanitizer. `shm-bus/fuzz` looks longer.
#![cfg(not(loom))]

#[path = "../fuzz/hostile.rs"]
mod hostile;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_peer_does(bytes in vec(any::<u8>(), 0..1500)) {
        hostile::run(&bytes);
    }

    /// Mostly the rules are kept, so that the odd break comes in a state that was reached by work.
    #[test]
    fn mostly_well_behaved(
        futex in 0u8..2, steps in vec((prop_oneof![
            9 => Just([0u8, 5, 7].as_slice()),
            // A run through both peers (the second half of the operations is the other's), with values on its way.
            9 => Just([1u8, 11, 5, 7, 26, 20, 7, 12, 5, 7].as_slice()),
            1 => Just([3, 2, 9].as_slice()),
        ], any::<[u8; 40]>()), 0..60),
    ) {
        let mut bytes = vec![futex];
        for (operations, noise) in steps {
            for (operation, noise) in operations.iter().zip(noise.chunks(4)) {
                bytes.push(*operation);
                match operation % 15 {
                    // In time.
                    1 => bytes.push(255),
                    // The operand of an answer: its own invocation, then a place, and a way that it would like.
                    5 => {
                        bytes.extend_from_slice(&[0, noise[0], 0, 0, 0, noise[1], 0, 0, 0, 0]);
                        bytes.extend_from_slice(&[noise[2], noise[3], noise[1], 0, noise[0], noise[2], 0, noise[3]]);
                    }
                    // A source, and how many.
                    11 => bytes.extend_from_slice(&[noise[0], noise[1], 0, 0, noise[2] % 20]),
                    _ => {}
                }
            }
            bytes.extend_from_slice(&[9]);
        }
        hostile::run(&bytes);
    }
}
