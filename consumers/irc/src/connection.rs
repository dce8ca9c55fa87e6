use std::path::Path;

use weir_consumer::{Failure, Result};

use crate::Server;

/// A connection to a server, shared by all of a process that post there under one nick.
///
/// Cheap to clone. Nothing is opened before the first [`post`](Connection::post) or
/// [`tick`](Connection::tick), and it is closed with a QUIT when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Connection {}

impl Connection {
    /// The connection to this server under this nick: one for all who ask with an equal `server`
    /// and `nick`, whose other settings have to be equal, too. Opens nothing.
    ///
    /// Relative paths in the settings start at `data_dir`.
    pub fn shared(_server: &Server, _data_dir: &Path) -> Connection {
        Connection {}
    }

    /// Says the text there, and returns when the server has answered what was said.
    ///
    /// The target is a channel (`"#weir"`, or with its key `"#weir key"`), which is joined, or a
    /// nick. Connects if need be. A text of several lines becomes as many lines, at most
    /// `lines_max`. Takes at most twice `timeout`.
    ///
    /// # Errors
    /// [`Verdict::Retry`](weir_consumer::Verdict::Retry) on all that may pass: no connection, not
    /// let into the channel, too fast. `DeadLetter` for a target that can be none. `Drop` for a
    /// text of which nothing is left without control characters. `Halt` when the server refuses the
    /// nick or the password, or another consumer has the connection with other settings.
    pub fn post(&self, _target: &str, _text: &str) -> Result {
        Err(Failure::retry("not connected"))
    }

    /// Keeps the connection: answers the server's pings, asks whether it is still there, connects
    /// and joins again what was lost. To be called about once a second, as a consumer's own `tick`.
    pub fn tick(&self) {}
}
