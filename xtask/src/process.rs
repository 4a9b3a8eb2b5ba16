//! Running other programs: echo the command, run it, turn a bad end into a [`Failure`].

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// The root of the repository; also the working directory of every command here.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root of the repository")
}

/// Where cargo builds: `target`, unless the environment says otherwise.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A cargo command with these arguments, of the toolchain that runs this.
pub(crate) fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Echoes and runs a command with this process's own input and output.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    eprintln!("$ {}", shown(command));
    let status = command.status().map_err(|source| cannot_start(command, source))?;
    if status.success() { Ok(()) } else { Err(Failure::Ended { command: shown(command), status }) }
}

/// Runs a command whose line is too long to be worth showing, unless it fails.
pub(crate) fn run_step(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|source| cannot_start(command, source))?;
    if status.success() { Ok(()) } else { Err(Failure::Ended { command: shown(command), status }) }
}

/// Empties `folder` and lets `work` fill it, unless it was filled by the same `recipe`.
pub(crate) fn step(
    folder: &Path,
    recipe: &str,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stamp = folder.join(".complete");
    if fs::read_to_string(&stamp).is_ok_and(|done| done == recipe) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|source| Failure::io("empty", folder, source))?;
    }
    fs::create_dir_all(folder).map_err(|source| Failure::io("create", folder, source))?;
    work()?;
    fs::write(&stamp, recipe).map_err(|source| Failure::io("write", &stamp, source))
}

/// Runs a command quietly and returns what it printed; its errors still go to the terminal.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|source| cannot_start(command, source))?;
    if !output.status.success() {
        return Err(Failure::Ended { command: shown(command), status: output.status });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command quietly, errors hidden, and says whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// For errors of `spawn` and the like.
pub(crate) fn cannot_start(command: &Command, source: std::io::Error) -> Failure {
    Failure::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// A command as one would type it: set variables, the program's bare name, the arguments.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value?.to_string_lossy())))
    });
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let args = command.get_args().map(|arg| quoted(&arg.to_string_lossy()));
    variables.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// The first program of this name on the `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "-p", "shm-bus"]).env("RUSTFLAGS", "--cfg loom");
        assert_eq!(shown(&command), "RUSTFLAGS='--cfg loom' cargo test -p shm-bus");
    }

    #[test]
    fn a_bad_end_is_a_failure_that_names_the_command() {
        let failure = run(Command::new("false").arg("x y")).expect_err("`false` succeeded");
        assert!(failure.to_string().starts_with("`false 'x y'` ended with"), "{failure}");
        let failure = run(&mut Command::new("no-such-program")).expect_err("it was started");
        assert!(failure.to_string().starts_with("start no-such-program:"), "{failure}");
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.toml").is_file() && root().join("xtask").is_dir());
    }
}
