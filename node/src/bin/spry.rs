//! The command line; see [`spry_node::cli`].

fn main() -> std::process::ExitCode {
    spry_node::cli::main()
}
