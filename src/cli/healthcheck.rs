//! `leitstand healthcheck`: one request to `/health/ready`, for images without a shell.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::BindArgs;
use crate::config::Bind;

const TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub(super) fn run(args: &BindArgs) -> Result<(), String> {
    let bind = super::env::config(args)?.bind;
    let answer = match &bind {
        Bind::Tcp { host, port } => tcp(host, *port),
        Bind::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            ask(stream)
        }),
    };
    let answer = answer.map_err(|e| format!("no answer from {bind:?}: {e}\n  is the service running, and with the same LEITSTAND_HOST and LEITSTAND_PORT?"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if answer.starts_with("HTTP/1.1 200 ") {
        println!("{body}");
        return Ok(());
    }
    Err(format!("not ready: {body}\n  see RUNBOOK, \"Not ready\""))
}

fn tcp(host: &str, port: u16) -> std::io::Result<String> {
    // Listening on all addresses includes loopback.
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "::1",
        other => other.trim_start_matches('[').trim_end_matches(']'),
    };
    let address = (host, port).to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    ask(stream)
}

fn ask(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
