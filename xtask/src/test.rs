//! Placeholder while compiling the rest.
#[derive(clap::Args)]
pub struct Arguments {}
pub fn run(_: &Arguments) -> anyhow::Result<bool> { Ok(true) }
