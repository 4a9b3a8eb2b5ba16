//! A function that can't be loaded, in all the ways that there are; and where a zygote's output goes.

use std::time::Duration;

use spry_node::zygote::{ExitHow, StartError, Zygote};

use crate::needs_control_group;
use crate::process_support::{Stage, exists, fork, read_all, within};

#[tokio::test]
async fn the_message_and_the_output_come_back() {
    let stage = Stage::new();
    let error = stage.start("raise", "idle").await.expect_err("raises");
    let StartError::Code { message, output } = &error else { panic!("{error:?}") };
    assert_eq!(message, "NameError: name 'x' is not defined");
    assert!(output.contains("loading") && output.contains("Traceback"), "{output}");
    assert!(error.blames_function());
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_process_that_ends_while_loading() {
    let stage = Stage::new();
    let error = stage.start("exit", "idle").await.expect_err("exits");
    let StartError::Died { exit, output } = &error else { panic!("{error:?}") };
    assert_eq!(exit.how, ExitHow::Code(7));
    assert_eq!(output, "so long\n");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_function_that_never_finishes_loading() {
    let stage = Stage::with(|config| config.start_timeout = Duration::from_millis(300));
    let error = stage.start("hang", "idle").await.expect_err("hangs");
    assert!(matches!(error, StartError::Timeout { .. }), "{error:?}");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn memory_that_runs_out_while_loading() {
    let stage = Stage::new();
    needs_control_group!(stage, Memory);
    let error = stage.start("bomb", "idle").await.expect_err("bomb");
    let StartError::Died { exit, .. } = &error else { panic!("{error:?}") };
    assert!(exit.out_of_memory, "{exit}");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn a_zygote_that_speaks_nonsense() {
    let stage = Stage::new();
    let error = stage.start("nonsense", "idle").await.expect_err("nonsense");
    assert!(matches!(error, StartError::Channel { .. }), "{error:?}");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn more_output_than_a_pipe_holds_blocks_nobody() {
    let stage = Stage::new();
    let zygote = stage.start("chatter", "idle").await.expect("start");
    let kept = zygote.loading_output();
    assert!(kept.ends_with("line 99999\n") && kept.len() <= 64 * 1024, "{}", kept.len());
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn the_end_of_a_zygote_is_told_and_its_instances_live_on() {
    let stage = Stage::new();
    let zygote = stage.start("good", "idle").await.expect("start");
    let instance = fork(&zygote).await.expect("fork");
    let zygote_pid = zygote.pid();
    zygote.kill();
    let exit = within("the zygote's end", zygote.exited()).await;
    assert_eq!(exit.how, ExitHow::Signal(libc::SIGKILL));
    assert!(!exists(zygote_pid), "reaped");
    let error = fork(&zygote).await.expect_err("gone");
    assert!(error.ends_zygote(), "{error:?}");
    drop(zygote);
    assert!(instance.exit().is_none());
    instance.kill();
    let exit = within("the instance's end", instance.exited()).await;
    assert_eq!(exit.how, ExitHow::Signal(libc::SIGKILL));
    assert!(!exists(instance.pid), "reaped");
    stage.executor.shutdown().await;
}

#[tokio::test]
async fn an_instance_writes_to_its_own_pipes() {
    let stage = Stage::new();
    let zygote = Zygote::start(&stage.executor, &stage.spec("good", "facts /dev/null")).await.expect("start");
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(fork(&zygote).await.expect("fork"));
    }
    let mut numbers: Vec<i32> = Vec::new();
    for instance in instances {
        assert_eq!(within("the end", instance.exited()).await.how, ExitHow::Code(0));
        let text = within("output", read_all(instance.stdout.try_clone().expect("dup"))).await;
        let mut said = text.lines().filter_map(|line| line.strip_prefix("Pid:\t"));
        numbers.push(said.next().expect("its number").parse().expect("a number"));
        assert_eq!(said.next(), None, "one instance's output");
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "in the order of their births: {numbers:?}");
    stage.executor.shutdown().await;
}
