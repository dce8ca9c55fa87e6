//! The kinds that a hub knows.

use std::collections::BTreeMap;

use weir_consumer::Kind;

/// Kinds by name.
///
/// A hub of one's own is the built-in kinds and more:
///
/// ```no_run
/// use weir::Registry;
/// use weir_consumer::{Context, Kind, Message, from_fn};
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Settings {}
///
/// fn main() -> std::process::ExitCode {
///     let shout = Kind::consumer("shout", |_: Settings, _: &Context| {
///         Ok(from_fn(|message: &Message| {
///             println!("{}!", message.topic().to_uppercase());
///             Ok(())
///         }))
///     });
///     weir::cli::main(Registry::builtin().with(shout))
/// }
/// ```
#[derive(Clone)]
pub struct Registry(BTreeMap<String, Kind>);

impl Registry {
    /// The kinds that come with weir.
    pub fn builtin() -> Self {
        let mut registry = Registry(BTreeMap::new());
        for kind in weir_log::kinds() {
            registry = registry.with(kind);
        }
        #[cfg(feature = "irc")]
        let registry = registry.with(weir_irc::kind());
        #[cfg(feature = "notify")]
        let registry = registry.with(weir_notify::kind());
        registry
            .with(weir_archive::kind())
            .with(weir_badges::kind())
            .with(weir_exec::kind())
            .with(weir_forward::kind())
            .with(weir_heartbeat::kind())
    }

    /// The same and one more; a kind of the same name is replaced.
    pub fn with(mut self, kind: Kind) -> Self {
        self.0.insert(kind.name().to_owned(), kind);
        self
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.0.get(name)
    }

    /// All kinds, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.values()
    }
}
