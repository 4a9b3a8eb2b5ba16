//! The allocator against a model: which bytes are taken, byte range by byte range.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Allocate(u32),
    Shrink(usize, u32),
    Free(usize),
    FreeNonsense(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![0u32..300, 1u32..40_000, Just(u32::MAX), Just(1 << 31)];
    let step = prop_oneof![
        4 => len.prop_map(Step::Allocate),
        1 => (any::<usize>(), 0u32..5000).prop_map(|(which, used)| Step::Shrink(which, used)),
        3 => any::<usize>().prop_map(Step::Free),
        1 => any::<u32>().prop_map(Step::FreeNonsense),
    ];
    vec(step, 0..300)
}

proptest! {
    #[test]
    fn blocks_never_overlap_and_all_comes_back(
        capacity in 0u32..200_000, header in 0u32..130, steps in steps(),
    ) {
        let mut allocator = Allocator::new(capacity);
        let header = header.min(allocator.capacity());
        allocator.reserve(header);
        let whole = allocator.largest();
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Allocate(len) => match allocator.allocate(len) {
                    Some(block) => {
                        prop_assert!(block.len >= len && block.len.is_power_of_two());
                        prop_assert!(block.offset.is_multiple_of(block.len), "aligned to its size");
                        prop_assert!(block.offset >= header);
                        prop_assert!(block.offset + block.len <= capacity);
                        let before = model.range(..block.offset).next_back();
                        prop_assert!(before.is_none_or(|(at, len)| at + len <= block.offset));
                        let after = model.range(block.offset..).next();
                        prop_assert!(after.is_none_or(|(at, _)| block.offset + block.len <= *at));
                        model.insert(block.offset, block.len);
                    }
                    None => prop_assert!(len > allocator.largest() || allocator.largest() == 0),
                },
                Step::Shrink(which, used) if !model.is_empty() => {
                    let (offset, len) = model.iter().nth(which % model.len()).map(|(o, l)| (*o, *l)).unwrap();
                    let left = allocator.shrink(Block { offset, len }, used);
                    let expected = used.max(1).next_power_of_two().max(BLOCK_MIN).min(len);
                    prop_assert_eq!(left, Block { offset, len: expected });
                    model.insert(offset, left.len);
                }
                Step::Free(which) if !model.is_empty() => {
                    let offset = *model.keys().nth(which % model.len()).unwrap();
                    let len = model.remove(&offset).unwrap();
                    prop_assert_eq!(allocator.free(offset), Some(Block { offset, len }));
                    prop_assert_eq!(allocator.free(offset), None, "freed twice");
                }
                Step::FreeNonsense(offset) if !model.contains_key(&offset) => {
                    prop_assert_eq!(allocator.free(offset), None);
                }
                _ => {}
            }
            prop_assert_eq!(allocator.in_use(), model.values().sum::<u32>());
            prop_assert_eq!(allocator.blocks(), model.len());
        }
        for offset in model.into_keys() {
            prop_assert!(allocator.free(offset).is_some());
        }
        prop_assert_eq!(allocator.largest(), whole, "everything merges again");
        prop_assert_eq!(allocator.in_use(), 0);
    }
}

#[test]
fn the_whole_is_one_block_and_becomes_one_again() {
    for capacity in [64, 4096, 1 << 30, 1 << 31] {
        let mut allocator = Allocator::new(capacity);
        let small = allocator.allocate(1).unwrap();
        assert_eq!(small, Block { offset: 0, len: 64 });
        allocator.free(small.offset);
        assert_eq!(allocator.allocate(capacity), Some(Block { offset: 0, len: capacity }));
        assert_eq!(allocator.allocate(1), None);
    }
}

#[test]
fn warm_blocks_come_first() {
    let mut allocator = Allocator::new(1 << 30);
    allocator.reserve(64);
    let blocks: Vec<_> = (0..1000).map(|_| allocator.allocate(100).unwrap()).collect();
    let top = blocks.iter().map(|block| block.offset).max().unwrap();
    assert!(top < 1001 * 128, "packed from the start: {top}");
    blocks.iter().for_each(|block| assert!(allocator.free(block.offset).is_some()));
    for _ in 0..10 {
        let again = allocator.allocate(100).unwrap();
        assert_eq!(again, Block { offset: 128, len: 128 });
        allocator.free(again.offset);
    }
}

#[test]
fn odd_capacities_are_used_to_the_end() {
    let mut allocator = Allocator::new(64 * 7 + 63);
    assert_eq!(allocator.capacity(), 64 * 7);
    assert_eq!(allocator.largest(), 256);
    let taken = std::iter::from_fn(|| allocator.allocate(64)).count();
    assert_eq!(taken, 7);
    assert_eq!(Allocator::new(63).allocate(0), None);
    assert_eq!(Allocator::new(u32::MAX).allocate(1 << 31), Some(Block { offset: 0, len: 1 << 31 }));
}
