use super::*;
use crate::predict::Predictor;
use proptest::prelude::*;

mod alps;
mod sfs;
mod srpt;

const MS: u64 = 1_000_000;

fn arrive(task: u32, function: u32) -> Event {
    Event::Arrive { task: TaskId(task), function: FunctionId(function), size_bytes: None }
}

fn exit(task: u32, used_ns: u64) -> Event {
    Event::Exit { task: TaskId(task), used_ns, finished: true }
}

/// What a policy says to an event.
fn ask(policy: &mut dyn Policy, now_ns: u64, event: Event) -> Vec<Decision> {
    let mut decisions = Vec::new();
    policy.on(now_ns, event, &mut decisions);
    decisions
}

/// The one decision that it is to be.
fn ask_one(policy: &mut dyn Policy, now_ns: u64, event: Event) -> Decision {
    let decisions = ask(policy, now_ns, event);
    assert_eq!(decisions.len(), 1, "{event:?}: {decisions:?}");
    decisions[0]
}

fn every_policy() -> Vec<Box<dyn Policy>> {
    let short_windows = SfsConfig { window: 3, ..SfsConfig::new(2) };
    vec![
        Box::new(Eevdf),
        Box::new(Sfs::new(short_windows)),
        Box::new(Alps::new(AlpsConfig { window: 5, period_ns: 10 * MS, ..AlpsConfig::new(2) })),
        Box::new(Srpt::new(Predictor::default())),
        Box::new(SrptPlus::new(SrptPlusConfig::default(), Predictor::default())),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let task = (0u32..6).prop_map(TaskId);
    let used = prop_oneof![0u64..100 * MS, any::<u64>()];
    (task, used, 0u32..4, any::<Option<u64>>(), any::<bool>(), 0..7).prop_map(
        |(task, used_ns, function, size_bytes, finished, kind)| match kind {
            0 => Event::Arrive { task, function: FunctionId(function), size_bytes },
            1 => Event::Start { task },
            2 => Event::SliceEnd { task, used_ns },
            3 => Event::Block { task, used_ns },
            4 => Event::Wake { task },
            5 => Event::Exit { task, used_ns, finished },
            _ => Event::Tick,
        },
    )
}

proptest! {
    /// The contract of the trait, whatever a backend comes up with: one answer where one is due, none to closed slots,
    /// ranks that don't overflow, ticks that lie ahead.
    #[test]
    fn the_contract_holds_for_any_events(
        events in prop::collection::vec((0u64..50 * MS, any_event()), 0..120),
    ) {
        for mut policy in every_policy() {
            let mut open = std::collections::BTreeSet::new();
            let mut now_ns = 0;
            let is_eevdf = ask(policy.as_mut(), 0, Event::Wake { task: TaskId(99) }).len() == 1;
            for &(later_ns, event) in &events {
                now_ns += later_ns;
                let decisions = ask(policy.as_mut(), now_ns, event);
                let wanted = match event {
                    Event::Arrive { task, .. } => {
                        open.insert(task);
                        Some(task)
                    }
                    Event::Wake { task } | Event::SliceEnd { task, .. } => {
                        (is_eevdf || open.contains(&task)).then_some(task)
                    }
                    Event::Exit { task, .. } => {
                        open.remove(&task);
                        None
                    }
                    _ => None,
                };
                let about_it = decisions.iter().filter(|decision| Some(decision.task) == wanted).count();
                prop_assert_eq!(about_it, usize::from(wanted.is_some()));
                for decision in &decisions {
                    prop_assert!(is_eevdf || open.contains(&decision.task));
                    prop_assert!(decision.slice_ns > 0);
                    prop_assert!(decision.rank_after(u64::MAX) <= decision.rank);
                }
            }
            // Nobody is left: nothing is to be asked about any more but what was learnt.
            for task in open {
                ask(policy.as_mut(), now_ns, Event::Exit { task, used_ns: MS, finished: true });
            }
            while let Some(at_ns) = policy.next_tick_ns() {
                prop_assert!(ask(policy.as_mut(), at_ns, Event::Tick).is_empty());
            }
        }
    }
}

#[test]
fn a_rank_falls_to_its_floor() {
    let decision = Decision { rank: 100, fall: 20, floor: 30, ..Decision::fair(TaskId(0)) };
    assert_eq!([0, 1, 3, 4, u64::MAX].map(|ran| decision.rank_after(ran)), [100, 80, 40, 30, 30]);
}
