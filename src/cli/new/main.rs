//! A hub with all the kinds of weir, and this one.

fn main() -> std::process::ExitCode {
    weir::cli::main(weir::Registry::builtin().with({{crate}}::kind()))
}
