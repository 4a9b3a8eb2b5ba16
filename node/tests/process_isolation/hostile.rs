//! Zygotes and instances that lie. Each lie is an error, costs the liar its life where it broke the protocol, hits
//! nobody else, and leaves nothing.

use std::time::Duration;

use spry_node::zygote::{ExitHow, ForkError, Zygote};

use crate::needs_control_group;
use crate::process_support::{Segments, Stage, WATCHDOG, exists, fork, gone, next_line, outside, within};

/// The zygote lies; it is killed for it, and no process is left.
async fn lie(name: &str) -> ForkError {
    let stage = Stage::new();
    let zygote = stage.start(name, "idle").await.expect("start");
    let error = within("an error", fork(&zygote)).await.expect_err(name);
    assert!(error.ends_zygote(), "{name}: {error:?}");
    let exit = within("the zygote's end", zygote.exited()).await;
    if name != "closes" {
        assert_eq!(exit.how, ExitHow::Signal(libc::SIGKILL), "{name}");
    }
    stage.executor.shutdown().await;
    assert_eq!(stage.control_groups(), [] as [std::path::PathBuf; 0]);
    error
}

macro_rules! lies {
    ($($test:ident: $name:literal, $pattern:pat,)*) => {
        $(#[tokio::test]
        async fn $test() {
            let error = lie($name).await;
            assert!(matches!(error, $pattern), "{error:?}");
        })*
    };
}

lies! {
    it_claims_to_be_its_own_instance: "claims-itself", ForkError::Lied { .. },
    it_claims_spryd: "claims-its-parent", ForkError::Lied { .. },
    it_claims_a_child_of_its_own: "claims-its-own-child", ForkError::Lied { .. },
    it_presents_its_init: "claims-its-init", ForkError::Lied { .. },
    it_answers_for_another_instance: "wrong-instance", ForkError::Lied { .. },
    it_sends_no_pidfd: "no-pidfd", ForkError::Lied { .. },
    it_sends_two_pidfds: "two-pidfds", ForkError::Lied { .. },
    it_sends_something_else_than_a_pidfd: "not-a-pidfd", ForkError::Lied { .. },
    it_sends_garbage: "garbage", ForkError::Lied { .. },
    it_closes_its_socket: "closes", ForkError::ZygoteGone(_) | ForkError::ZygoteDied(_),
}

#[tokio::test]
async fn it_sends_nothing() {
    let stage = Stage::with(|config| config.fork_timeout = Duration::from_millis(300));
    let zygote = stage.start("silent", "idle").await.expect("start");
    let error = within("an error", fork(&zygote)).await.expect_err("silence");
    assert!(matches!(error, ForkError::Timeout { from: "zygote", .. }), "{error:?}");
    within("the zygote's end", zygote.exited()).await;
    stage.executor.shutdown().await;
}

/// Nobody else waits for its answer: what another function's instance leaves ends with it.
#[tokio::test]
async fn it_keeps_spryd_waiting() {
    let stage = Stage::with(|config| config.fork_timeout = 60 * WATCHDOG);
    needs_control_group!(stage, Pids);
    let silent = stage.start("silent", "idle").await.expect("start");
    let honest = stage.start("good", "grandchildren").await.expect("start");
    let mut asking = Box::pin(fork(&silent));
    tokio::select! {
        biased;
        _ = &mut asking => panic!("it has answered"),
        () = tokio::task::yield_now() => {} // it has been asked
    }
    let instance = fork(&honest).await.expect("fork");
    let line = next_line(&instance.stdout).await;
    let left = line.split_whitespace().map(|pid| outside(instance.pid, pid.parse().expect("pid")));
    let left: Vec<i32> = left.collect();
    instance.kill();
    within("the end", instance.exited()).await;
    for pid in left {
        gone(pid).await;
    }
    drop(asking);
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn it_claims_another_functions_instance() {
    let stage = Stage::new();
    let honest = stage.start("good", "idle").await.expect("start");
    let victim = fork(&honest).await.expect("fork");
    let mut spec = stage.spec("claims-another", "idle");
    spec.env.insert("VICTIM".to_owned(), victim.pid.to_string());
    let liar = Zygote::start(&stage.executor, &spec).await.expect("start");
    let error = fork(&liar).await.expect_err("a lie");
    assert!(matches!(error, ForkError::Lied { .. }), "{error:?}");
    assert!(victim.exit().is_none() && exists(victim.pid), "the victim is unharmed");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn it_presents_the_same_process_twice() {
    let stage = Stage::new();
    let zygote = stage.start("same-twice", "idle").await.expect("start");
    let first = fork(&zygote).await.expect("fork");
    let error = fork(&zygote).await.expect_err("the same again");
    assert!(matches!(error, ForkError::Lied { .. }), "{error:?}");
    assert!(first.exit().is_none(), "the first is what it was");
    stage.executor.shutdown().await;
}

/// It forks children for spryd that it doesn't report: they die with it.
#[tokio::test]
async fn it_makes_children_behind_spryds_back() {
    let stage = Stage::new();
    let zygote = stage.start("strays", "idle").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    zygote.kill();
    within("the zygote's end", zygote.exited()).await;
    assert!(instance.exit().is_none());
    stage.executor.shutdown().await;
    assert!(!exists(instance.pid));
    // the executor's thread has ended, which it does only without children
}

#[tokio::test]
async fn a_refusal_is_no_lie() {
    let stage = Stage::new();
    let zygote = stage.start("refuses", "idle").await.expect("start");
    let error = fork(&zygote).await.expect_err("refused");
    assert!(
        matches!(&error, ForkError::Refused { step, errno: nix::errno::Errno::EAGAIN } if step == "clone3")
    );
    assert!(!error.ends_zygote() && zygote.exit().is_none());
    stage.executor.shutdown().await;
}

/// What an instance does wrong before it is given over costs it alone.
#[tokio::test]
async fn instances_that_never_become_one() {
    let stage = Stage::new();
    for name in ["unsealed", "dies-first", "fails", "babbles"] {
        let zygote = stage.start("good", name).await.expect("start");
        let error = within("an error", fork(&zygote)).await.expect_err(name);
        let right = match &error {
            ForkError::NotSealed(_) => name == "unsealed",
            // which of the two depends on whether it was still there to be looked at
            ForkError::Died(exit) => name == "dies-first" && exit.how == ExitHow::Code(5),
            ForkError::Setup { step, .. } => name == "fails" && step == "map inbox",
            ForkError::Instance(_) => name == "babbles",
            _ => false,
        };
        assert!(right && !error.ends_zygote(), "{name}: {error:?}");
        assert!(zygote.exit().is_none());
    }
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn an_instance_that_says_nothing() {
    let stage = Stage::with(|config| config.fork_timeout = Duration::from_secs(5));
    let zygote = stage.start("good", "mute").await.expect("start");
    let error = within("an error", fork(&zygote)).await.expect_err("mute");
    assert!(matches!(&error, ForkError::Timeout { from: "instance", .. }), "{error:?}");
    assert!(!error.ends_zygote() && zygote.exit().is_none());
    stage.executor.shutdown().await;
}

/// A fork whose caller gives up: the process is killed when it shows up, and the next fork works.
#[tokio::test]
async fn a_fork_that_is_given_up() {
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    for instance in 1000..1020 {
        let segments = Segments::new();
        let mut asking = Box::pin(zygote.fork(segments.request(instance), || ()));
        // as far as it gets in a few turns of the event loop: a different point each time
        for _ in 0..instance % 10 {
            tokio::select! {
                biased;
                done = &mut asking => { drop(done.expect("fork")); break }
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let instance = fork(&zygote).await.expect("fork");
    assert!(exists(instance.pid));
    stage.executor.shutdown().await;
    assert!(!exists(instance.pid));
}

/// Several at once.
#[tokio::test]
async fn forks_side_by_side() {
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    let forks: Vec<_> = (0..16).map(|_| fork(&zygote)).collect();
    let mut pids = Vec::new();
    let mut instances = Vec::new();
    for instance in join(forks).await {
        let instance = instance.expect("fork");
        pids.push(instance.pid);
        instances.push(instance);
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 16);
    stage.executor.shutdown().await;
    assert!(pids.into_iter().all(|pid| !exists(pid)));
}

/// All of them, polled together.
async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut done = true;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => done = false,
                }
            }
        }
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}
