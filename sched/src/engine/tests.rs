//! A node in a box: cores that run whoever is at the front, then whoever is at the back.

use super::*;
use crate::policy::{Sfs, SfsConfig, Srpt, SrptPlus, SrptPlusConfig};
use crate::predict::Predictor;
use crate::sim::{Job, Machine, OfflineSrpt};

const MS: u64 = 1_000_000;

struct Running {
    job: usize,
    burst: usize,
    left_ns: u64,
    used_ns: u64,
    level: Level,
    /// That it was told to go on at.
    core: Option<u16>,
    wakes_ns: Option<u64>,
}

struct Node<'a> {
    engine: Engine,
    trace: &'a [Job],
    cores: usize,
    /// Whether the engine hears of blocking.
    told: bool,
    now_ns: u64,
    next: usize,
    jobs: std::collections::BTreeMap<u32, usize>,
    running: std::collections::BTreeMap<u32, Running>,
    finish_ns: Vec<u64>,
    begun_max: usize,
}

impl<'a> Node<'a> {
    fn run(policy: Box<dyn Policy + Send>, cores: usize, told: bool, trace: &'a [Job]) -> Self {
        let mut node = Self {
            engine: Engine::new(policy, cores, true),
            trace,
            cores,
            told,
            now_ns: 0,
            next: 0,
            jobs: Default::default(),
            running: Default::default(),
            finish_ns: vec![0; trace.len()],
            begun_max: 0,
        };
        let mut steps = 0u64;
        while node.finish_ns.contains(&0) {
            node.step();
            steps += 1;
            assert!(steps < 20_000_000, "the node stands still at {} ns", node.now_ns);
        }
        assert_eq!((node.engine.waiting(), node.engine.begun()), (0, (0, 0)));
        node
    }

    /// Who has a core: the front first, then the back, those that came first.
    fn on_cores(&self) -> Vec<u32> {
        let able = |level| {
            let of = move |(id, task): (&u32, &Running)| {
                (task.level == level && task.wakes_ns.is_none()).then_some(*id)
            };
            self.running.iter().filter_map(of)
        };
        able(Level::Front).chain(able(Level::Back)).take(self.cores).collect()
    }

    fn step(&mut self) {
        let on = self.on_cores();
        let ends = on.iter().map(|id| self.now_ns + self.running[id].left_ns);
        let wakes = self.running.values().filter_map(|task| task.wakes_ns);
        let arrives = self.trace.get(self.next).map(|job| job.arrival_ns);
        let turn = self.engine.next_turn_ns();
        let next =
            ends.chain(wakes).chain(arrives).chain(turn).min().expect("something happens").max(self.now_ns);
        for id in &on {
            let task = self.running.get_mut(id).unwrap();
            task.left_ns -= next - self.now_ns;
            task.used_ns += next - self.now_ns;
        }
        self.now_ns = next;
        let mut orders = Vec::new();
        for id in on.into_iter().filter(|id| self.running[id].left_ns == 0).collect::<Vec<_>>() {
            self.burst_over(id);
        }
        let due = |task: &Running| task.wakes_ns.is_some_and(|at| at <= next);
        for id in self.running.iter().filter(|(_, task)| due(task)).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.running.get_mut(&id).unwrap().wakes_ns = None;
            if self.told {
                self.engine.wake(next, TaskId(id), &mut orders);
                self.obey(&mut orders);
            }
        }
        while let Some(job) = self.trace.get(self.next).filter(|job| job.arrival_ns <= next) {
            let id = self.engine.arrive(next, job.function, job.size_bytes, &mut orders);
            self.jobs.insert(id.0, self.next);
            self.next += 1;
            self.obey(&mut orders);
        }
        if self.engine.next_turn_ns().is_some_and(|at| at <= next) {
            let running = &self.running;
            self.engine.turn(next, &mut |id| Some(running.get(&id.0)?.used_ns), &mut orders);
            self.obey(&mut orders);
        }
        let able = self.running.values().filter(|task| task.wakes_ns.is_none() && task.level == Level::Front);
        self.begun_max = self.begun_max.max(able.clone().count());
        if self.told {
            let mut cores: Vec<Option<u16>> = able.map(|task| task.core).collect();
            cores.sort_unstable();
            assert!(!cores.contains(&None) && cores.windows(2).all(|two| two[0] != two[1]), "{cores:?}");
        }
    }

    fn burst_over(&mut self, id: u32) {
        let task = self.running.get_mut(&id).unwrap();
        let bursts = &self.trace[task.job].bursts_ns;
        let mut orders = Vec::new();
        if let (Some(io), Some(cpu)) = (bursts.get(task.burst + 1), bursts.get(task.burst + 2)) {
            task.burst += 2;
            task.left_ns = *cpu;
            task.wakes_ns = Some(self.now_ns + io);
            if self.told {
                let used_ns = task.used_ns;
                self.engine.block(self.now_ns, TaskId(id), used_ns, &mut orders);
            }
        } else {
            self.finish_ns[task.job] = self.now_ns;
            let used_ns = task.used_ns;
            self.running.remove(&id);
            self.engine.exit(self.now_ns, TaskId(id), used_ns, true, &mut orders);
        }
        self.obey(&mut orders);
    }

    fn obey(&mut self, orders: &mut Vec<Order>) {
        while !orders.is_empty() {
            for order in std::mem::take(orders) {
                match order {
                    Order::Admit(id) => {
                        let job = self.jobs[&id.0];
                        let left_ns = self.trace[job].bursts_ns[0];
                        let level = Level::Front;
                        let task =
                            Running { job, burst: 0, left_ns, used_ns: 0, level, core: None, wakes_ns: None };
                        assert!(self.running.insert(id.0, task).is_none(), "admitted twice");
                        self.engine.sent(self.now_ns, id, orders);
                    }
                    Order::Stand(id, standing) => {
                        if let Some(task) = self.running.get_mut(&id.0) {
                            task.level = standing.level;
                            task.core = standing.core.or(task.core);
                        }
                    }
                }
            }
        }
    }

    fn mean_ms(&self) -> f64 {
        let sum: u64 = self.trace.iter().zip(&self.finish_ns).map(|(job, end)| end - job.arrival_ns).sum();
        sum as f64 / self.trace.len() as f64 / MS as f64
    }
}

/// Four of 5 ms to one of 500 ms, at the times of a linear congruential generator.
fn bimodal(jobs: usize, gap_ns: u64, sleeps: bool) -> Vec<Job> {
    let (mut state, mut now) = (7u64, 0);
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    (0..jobs)
        .map(|_| {
            now += (-(1.0 - draw()).ln() * gap_ns as f64) as u64;
            let long = draw() < 0.2;
            let cpu = if long { 500 * MS } else { 5 * MS };
            let bursts_ns = if sleeps { vec![cpu / 2, 20 * MS, cpu / 2] } else { vec![cpu] };
            Job { arrival_ns: now, function: FunctionId(u32::from(long)), size_bytes: None, bursts_ns }
        })
        .collect()
}

fn srpt_plus() -> Box<dyn Policy + Send> {
    Box::new(SrptPlus::new(SrptPlusConfig::default(), Predictor::default()))
}

#[test]
fn a_node_is_nearly_as_good_as_srpt_that_knows_every_size() {
    // Load 0.95 of two cores.
    let trace = bimodal(1500, 55 * MS, false);
    let offline = Machine::new(2).run(&trace, &mut OfflineSrpt::new(&trace)).expect("a trace");
    let sum: u64 = trace.iter().zip(&offline.finish_ns).map(|(job, end)| end - job.arrival_ns).sum();
    let best_ms = sum as f64 / trace.len() as f64 / MS as f64;
    for policy in [srpt_plus(), Box::new(Srpt::new(Predictor::default()))] {
        let node = Node::run(policy, 2, true, &trace);
        assert!(node.mean_ms() < 1.1 * best_ms, "{} ms, at best {best_ms} ms", node.mean_ms());
        assert!(node.begun_max <= 2, "{} at the front of two cores", node.begun_max);
    }
}

#[test]
fn whoever_sleeps_leaves_his_core_to_others_whether_anybody_tells_or_not() {
    let trace = bimodal(800, 60 * MS, true);
    let told = Node::run(srpt_plus(), 2, true, &trace).mean_ms();
    let found_out = Node::run(srpt_plus(), 2, false, &trace).mean_ms();
    assert!(found_out < 1.6 * told, "{found_out} ms, told {told} ms");
}

#[test]
fn who_waits_for_something_else_keeps_his_rank() {
    // Both long; the first sleeps in the middle, and then goes before the second, who has more left.
    let job = |arrival_ns, bursts_ns: &[u64]| Job {
        arrival_ns,
        function: FunctionId(0),
        size_bytes: None,
        bursts_ns: bursts_ns.to_vec(),
    };
    let mut trace: Vec<Job> = (0..20).map(|place| job(place * 200 * MS, &[100 * MS])).collect();
    let after = 20 * 200 * MS;
    trace.push(job(after, &[60 * MS, 20 * MS, 40 * MS]));
    trace.push(job(after + 50 * MS, &[100 * MS]));
    let node = Node::run(srpt_plus(), 1, true, &trace);
    assert!(node.finish_ns[20] < node.finish_ns[21], "{:?}", &node.finish_ns[20..]);
    assert_eq!(node.finish_ns[20] - after, 120 * MS);
}

#[test]
fn a_function_that_lies_about_being_short_loses_its_place_and_nobody_starves() {
    // 40 short ones, then one of the same function that takes a second; others go on coming, at load 0.95 of one core.
    let job = |arrival_ns, function, cpu_ns| Job {
        arrival_ns,
        function: FunctionId(function),
        size_bytes: None,
        bursts_ns: vec![cpu_ns],
    };
    let mut trace: Vec<Job> = (0..40).map(|place| job(place * 10 * MS, 0, 2 * MS)).collect();
    trace.push(job(400 * MS, 0, 1000 * MS));
    trace.push(job(401 * MS, 1, 500 * MS));
    trace.extend((0..3000).map(|place| job((402 + place * 6) * MS, 2, 5 * MS)));
    let node = Node::run(srpt_plus(), 1, true, &trace);
    let honest = node.finish_ns[42..].iter().zip(&trace[42..]).map(|(end, job)| end - job.arrival_ns);
    let honest: Vec<u64> = honest.collect();
    // The short ones go on as if the liar weren't there, but for his tries and the share of the overdue.
    let mean_ms = honest.iter().sum::<u64>() as f64 / honest.len() as f64 / MS as f64;
    assert!(mean_ms < 12.0, "{mean_ms} ms");
    // The honest long one isn't behind the liar, and both end while the short ones still come.
    assert!(node.finish_ns[41] < node.finish_ns[40], "{:?}", &node.finish_ns[40..42]);
    assert!(node.finish_ns[40] < trace.last().unwrap().arrival_ns, "{:?}", &node.finish_ns[40..42]);
}

#[test]
fn nobody_exceeds_the_bound_of_srpt_plus() {
    let config = SrptPlusConfig { stretch: 4, patience_ns: 2_000 * MS, ..SrptPlusConfig::default() };
    // Load 1.05 of one core: without the bound the long ones would wait until the end.
    let trace = bimodal(400, 99 * MS, false);
    let node = Node::run(Box::new(SrptPlus::new(config, Predictor::default())), 1, true, &trace);
    for (place, (job, end)) in trace.iter().zip(&node.finish_ns).enumerate() {
        let due = job.arrival_ns + config.patience_ns;
        // V and A of the proof: all that is there or comes until the due date, at most.
        let work: u64 = trace.iter().filter(|other| other.arrival_ns <= due).map(Job::cpu_ns).sum();
        let done: u64 = trace
            .iter()
            .zip(&node.finish_ns)
            .filter(|(_, end)| **end <= job.arrival_ns)
            .map(|(job, _)| job.cpu_ns())
            .sum();
        let per_cent = u64::from(config.share_percent);
        let bound = config.patience_ns + (work - done + 2 * config.quantum_ns) * 100 / per_cent;
        assert!(end - job.arrival_ns <= bound, "job {place}");
    }
}

#[test]
fn under_sfs_nobody_is_overtaken_within_his_slice() {
    let trace = bimodal(600, 60 * MS, false);
    let node = Node::run(Box::new(Sfs::new(SfsConfig::new(2))), 2, true, &trace);
    assert!(node.begun_max <= 2);
}

#[test]
fn of_those_who_wait_and_are_alike_the_first_to_come_is_the_first_to_begin() {
    let mut predictor = Predictor::default();
    // One function takes a hair longer than the other: both take half a second.
    for (function, ms) in [(0, 500), (1, 530)] {
        (0..8).for_each(|_| predictor.observe(FunctionId(function), None, ms * MS));
    }
    let policy = Box::new(SrptPlus::new(SrptPlusConfig::default(), predictor));
    let mut engine = Engine::new(policy, 1, false);
    let mut orders = Vec::new();
    let arrived: Vec<TaskId> =
        [0, 1, 0, 1, 0].map(|function| engine.arrive(0, FunctionId(function), None, &mut orders)).into();
    let mut admitted = Vec::new();
    for _ in &arrived {
        let Some(Order::Admit(id)) = orders.iter().copied().find(|order| matches!(order, Order::Admit(_)))
        else {
            panic!("nobody is admitted: {orders:?}")
        };
        admitted.push(id);
        orders.clear();
        engine.sent(0, id, &mut orders);
        engine.exit(0, id, 500 * MS, true, &mut orders);
    }
    assert_eq!(admitted, arrived);
}

#[test]
fn an_admitted_invocation_without_an_instance_holds_up_nobody() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    let first = engine.arrive(0, FunctionId(0), None, &mut orders);
    assert_eq!(orders, [Order::Admit(first)]);
    orders.clear();
    engine.stalled(0, first, &mut orders);
    // One of each function may be waiting for its process; a second of the same one isn't let in.
    let second = engine.arrive(1, FunctionId(0), None, &mut orders);
    assert_eq!((orders.as_slice(), engine.waiting()), (&[][..], 1));
    let other = engine.arrive(2, FunctionId(1), None, &mut orders);
    assert_eq!(orders, [Order::Admit(other)]);
    orders.clear();
    engine.sent(2, other, &mut orders);
    engine.exit(3, other, 1, true, &mut orders);
    assert_eq!((orders.as_slice(), engine.waiting()), (&[][..], 1));
    engine.sent(4, first, &mut orders);
    engine.exit(5, first, 1, true, &mut orders);
    assert_eq!(orders, [Order::Admit(second)]);
}

#[test]
fn however_many_wait_for_an_instance_others_begin() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    let calls: Vec<TaskId> = (0..100)
        .map(|at_ns| {
            let id = engine.arrive(at_ns, FunctionId(0), None, &mut orders);
            if orders.contains(&Order::Admit(id)) {
                engine.stalled(at_ns, id, &mut orders);
            }
            id
        })
        .collect();
    assert_eq!((engine.waiting(), engine.begun()), (99, (1, 0)));
    orders.clear();
    let other = engine.arrive(100, FunctionId(1), None, &mut orders);
    assert_eq!(orders, [Order::Admit(other)]);
    engine.sent(100, other, &mut orders);
    engine.exit(101, other, 1, true, &mut orders);
    // One that is taken out is missed by nobody, and the rest go one by one, as they came.
    engine.exit(102, calls[1], 0, false, &mut orders);
    let mut last = calls[0];
    for &next in &calls[2..] {
        orders.clear();
        engine.sent(103, last, &mut orders);
        engine.exit(104, last, MS, true, &mut orders);
        assert_eq!(orders, [Order::Admit(next)]);
        engine.stalled(104, next, &mut orders);
        last = next;
    }
    engine.exit(105, last, 0, false, &mut orders);
    assert_eq!((engine.waiting(), engine.begun()), (0, (0, 0)));
}

#[test]
fn whoever_has_no_instance_keeps_the_credit_from_nobody() {
    let mut predictor = Predictor::default();
    (0..8).for_each(|_| predictor.observe(FunctionId(1), None, 500 * MS));
    let config = SrptPlusConfig { patience_ns: 100 * MS, ..SrptPlusConfig::default() };
    let mut engine = Engine::new(Box::new(SrptPlus::new(config, predictor)), 1, false);
    let mut orders = Vec::new();
    // One that waits for its process, one for room behind it: both are overdue before the long one is.
    let stalled = engine.arrive(0, FunctionId(0), None, &mut orders);
    engine.stalled(0, stalled, &mut orders);
    let parked = engine.arrive(0, FunctionId(0), None, &mut orders);
    let long = engine.arrive(0, FunctionId(1), None, &mut orders);
    engine.sent(0, long, &mut orders);
    let mut now = MS;
    let mut short = engine.arrive(now, FunctionId(2), None, &mut orders);
    engine.sent(now, short, &mut orders);
    // Short ones, each there before the one before has ended.
    while !engine.is_at(long, Place::Front) {
        now += MS;
        assert!(now < 2 * config.patience_ns, "the long one is overdue, and nobody else can run");
        let next = engine.arrive(now - 1, FunctionId(2), None, &mut orders);
        engine.exit(now, short, MS, true, &mut orders);
        engine.sent(now, next, &mut orders);
        if engine.next_turn_ns().is_some_and(|at_ns| at_ns <= now) {
            engine.turn(now, &mut |_| None, &mut orders);
        }
        short = next;
    }
    assert!(now > config.patience_ns);
    // There is an instance now, which they come before everybody with: they have waited for longest.
    orders.clear();
    engine.sent(now, stalled, &mut orders);
    assert!(engine.is_at(stalled, Place::Front), "{engine:?}");
    engine.exit(now, stalled, 1, true, &mut orders);
    assert!(orders.contains(&Order::Admit(parked)), "{orders:?}");
}

#[test]
fn a_wake_up_that_nobody_has_told_of_is_found_out() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    let sleeper = engine.arrive(0, FunctionId(0), None, &mut orders);
    engine.sent(0, sleeper, &mut orders);
    engine.block(MS, sleeper, MS, &mut orders);
    let other = engine.arrive(MS, FunctionId(1), None, &mut orders);
    engine.sent(MS, other, &mut orders);
    let mut until = |end_ns: u64, sleepers_ns: u64| {
        while let Some(at_ns) = engine.next_turn_ns().filter(|at_ns| *at_ns <= end_ns) {
            let mut used = |id| Some(if id == sleeper { sleepers_ns } else { at_ns - MS });
            engine.turn(at_ns, &mut used, &mut orders);
        }
        engine.is_at(sleeper, Place::Blocked { told: true })
    };
    assert!(until(MS + 3 * TOLD_LOOK_NS, MS), "it has used nothing since");
    assert!(!until(MS + 4 * TOLD_LOOK_NS, 2 * MS), "nobody can use CPU time while blocked");
}

#[test]
fn whoever_ends_at_the_back_leaves_his_process_at_the_front() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    let long = engine.arrive(0, FunctionId(0), None, &mut orders);
    engine.sent(0, long, &mut orders);
    // It has outlasted what was expected of it, and is expected to go on for long.
    engine.turn(40 * MS, &mut |_| Some(40 * MS), &mut orders);
    orders.clear();
    let short = engine.arrive(41 * MS, FunctionId(1), None, &mut orders);
    let back = Standing { level: Level::Back, ..Standing::FREE };
    assert!(
        matches!(orders[..], [Order::Stand(id, Standing { level: Level::Back, .. }), Order::Admit(who)]
        if id == long && who == short),
        "{orders:?} {back:?}"
    );
    orders.clear();
    engine.exit(42 * MS, long, 40 * MS, true, &mut orders);
    assert_eq!(orders, [Order::Stand(long, Standing::FREE)]);
}

#[test]
fn a_backend_with_ranks_hears_of_each_beginning_of_each_new_rank_and_of_each_end() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    engine.tell_anew(true, &mut orders);
    let first = engine.arrive(0, FunctionId(0), None, &mut orders);
    assert_eq!(orders, [Order::Admit(first)]);
    engine.sent(0, first, &mut orders);
    let Some(Order::Stand(id, begun)) = orders.pop() else { panic!("{orders:?}") };
    assert!(id == first && begun.begins && begun.rank > 0, "{begun:?}");
    orders.clear();
    engine.turn(40 * MS, &mut |_| Some(40 * MS), &mut orders);
    let Some(Order::Stand(id, later)) = orders.pop() else { panic!("{orders:?}") };
    assert!(id == first && !later.begins && later.rank > begun.rank, "{later:?}");
    // To a backend that knows nothing of what was said before.
    orders.clear();
    engine.tell_anew(false, &mut orders);
    assert_eq!(orders, [Order::Stand(first, Standing { core: None, ..later })]);
    engine.tell_anew(true, &mut orders);
    orders.clear();
    engine.exit(42 * MS, first, 40 * MS, true, &mut orders);
    assert_eq!(orders, [Order::Stand(first, Standing::FREE)]);
}

#[test]
fn those_of_the_fair_class_have_the_last_rank() {
    let mut engine = Engine::new(Box::new(Sfs::new(SfsConfig::new(1))), 1, true);
    let mut orders = Vec::new();
    let task = engine.arrive(0, FunctionId(0), None, &mut orders);
    engine.sent(0, task, &mut orders);
    orders.clear();
    engine.turn(1000 * MS, &mut |_| Some(1000 * MS), &mut orders);
    let last = |order: &Order| matches!(order, Order::Stand(_, standing) if standing.rank == Standing::LAST);
    assert!(orders.iter().any(last), "{orders:?}");
}

#[test]
fn who_was_kept_at_the_back_is_not_taken_for_blocked() {
    let mut engine = Engine::new(srpt_plus(), 1, false);
    let mut orders = Vec::new();
    let long = engine.arrive(0, FunctionId(0), None, &mut orders);
    engine.sent(0, long, &mut orders);
    engine.turn(40 * MS, &mut |_| Some(40 * MS), &mut orders);
    // Short ones, each there before the one before has ended, keep it from running for 400 ms.
    let mut now = 41 * MS;
    let mut short = engine.arrive(now, FunctionId(1), None, &mut orders);
    engine.sent(now, short, &mut orders);
    for _ in 0..400 {
        now += MS;
        let next = engine.arrive(now - 1, FunctionId(1), None, &mut orders);
        engine.exit(now, short, MS, true, &mut orders);
        engine.sent(now, next, &mut orders);
        assert!(!engine.is_at(long, Place::Front));
        short = next;
    }
    engine.exit(now, short, MS, true, &mut orders);
    assert!(engine.is_at(long, Place::Front));
    // From then on it runs all the time, and whenever it is looked at it is still there.
    let back_at = now;
    for _ in 0..10 {
        now = engine.next_turn_ns().expect("it has a slice");
        engine.turn(now, &mut |_| Some(40 * MS + (now - back_at)), &mut orders);
        assert!(engine.is_at(long, Place::Front), "{:?} after {} us", engine.begun(), (now - back_at) / 1000);
    }
}
