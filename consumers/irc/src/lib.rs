//! The kind `irc`: posts messages to channels; and its connection, for other kinds that post.

mod server;

mod connection;

pub use connection::Connection;
pub use server::Server;
