//! The `weir` command with the kinds that come with it.

use std::process::ExitCode;

/// glibc's allocator fights over its arenas when messages are made on one thread and freed on
/// another, which is all that a hub does (benches/README.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir::cli::main(weir::Registry::builtin())
}
