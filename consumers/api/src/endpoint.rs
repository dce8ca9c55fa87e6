//! ZeroMQ endpoints as a configuration has them: what is checked before anything is opened.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Says what is wrong with an endpoint, if anything is.
///
/// ```
/// use weir_consumer::endpoint::check;
///
/// assert_eq!(check("tcp://127.0.0.1:9940"), Ok(()));
/// assert!(check("127.0.0.1:9940").unwrap_err().contains("is no endpoint"));
/// ```
///
/// # Errors
/// What is wrong, with an example of what would be right.
pub fn check(endpoint: &str) -> Result<(), String> {
    let examples = "write it such as \"tcp://127.0.0.1:9940\", \"ipc:///run/weir/bus\" or \
                    \"inproc://bus\"";
    let wrong = |what: &str| Err(format!("`{endpoint}` {what}; {examples}"));
    match endpoint.split_once("://") {
        Some(("tcp", address)) => match address.rsplit_once(':') {
            Some((host, _)) if host.contains(['[', ':']) => wrong("has an IPv6 address"),
            Some((host, _)) if host.is_empty() || host.contains(char::is_whitespace) => {
                wrong("has no host that could be one")
            }
            Some((_, port)) if port == "*" || port.parse::<u16>().is_ok() => Ok(()),
            Some(_) => wrong("has no port from 1 to 65535"),
            None => wrong("has no port"),
        },
        // The limit of a Unix socket's address, less the NUL at its end (unix(7)).
        Some(("ipc", path)) if path.len() > 107 => wrong("has a path of more than 107 bytes"),
        Some(("ipc" | "inproc", name)) if !name.is_empty() => Ok(()),
        Some(("ipc" | "inproc", _)) => wrong("has no name"),
        Some((transport, _)) => wrong(&format!(
            "is of the transport {transport}, which weir lacks"
        )),
        None => wrong("is no endpoint"),
    }
}

/// What is wrong with a list of endpoints to connect to or to bind to: each mistake with its place.
pub fn check_list(endpoints: &[String], to_connect: bool) -> Vec<(usize, String)> {
    let wrong = |(index, endpoint): (usize, &String)| {
        let wrong = if endpoints[..index].contains(endpoint) {
            Some(format!("`{endpoint}` is given twice"))
        } else if to_connect && (endpoint.contains('*') || endpoint.ends_with(":0")) {
            Some(format!(
                "`{endpoint}` can't be connected to: give one host and one port"
            ))
        } else {
            check(endpoint).err()
        };
        Some((index, wrong?))
    };
    endpoints.iter().enumerate().filter_map(wrong).collect()
}

/// The endpoint as libzmq wants it: it can't bind to `localhost`, and connecting there may try IPv6
/// first.
pub fn resolved(endpoint: &str) -> String {
    endpoint.replacen("tcp://localhost:", "tcp://127.0.0.1:", 1)
}

/// Looks whether somebody has an `ipc` path; libzmq would take it away from them.
///
/// # Errors
/// Who has it, and what to do about it.
pub fn check_free(endpoint: &str) -> Result<(), String> {
    let Some(path) = endpoint.strip_prefix("ipc://").map(Path::new) else {
        return Ok(()); // the system refuses an address that is taken
    };
    let wrong = |what: &str| Err(format!("can't bind to {endpoint}: {what}"));
    match std::fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            wrong("there is a file, and it is no socket")
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            wrong("another program, perhaps another hub, has it: stop that one or use another path")
        }
        _ => Ok(()), // nobody, or one that has ended
    }
}
