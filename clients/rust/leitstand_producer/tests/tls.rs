//! https, with certificates made by `openssl` for the test and a server of Python's library.
#![cfg(feature = "tls")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use support::feed;

const SERVER: &str = r#"
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(202)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("leaf.pem", "leaf.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

const CERTIFICATES: &str = r#"
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf
printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' > leaf.ext
openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem -days 2 -extfile leaf.ext
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout o.key -out other.pem -days 2 -subj /CN=o
"#;

fn send(url: &str, dir: &Path, trusted: &str) -> String {
    let mut command = feed();
    command.args(["example.com", "0", "3"]).env("LEITSTAND_URL", url).env("LEITSTAND_RETRIES", "0");
    command.env("SSL_CERT_FILE", dir.join(trusted)).env_remove("SSL_CERT_DIR");
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
}

/// Broken, a token would go to whoever answers, or https would not work at all.
#[test]
fn https_reaches_a_server_with_a_trusted_certificate_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("sh").args(["-c", CERTIFICATES]).current_dir(dir.path()).output();
    match made {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skip: openssl cannot make certificates here: {other:?}");
            return;
        }
    }
    let mut python = Command::new("python3");
    python.args(["-c", SERVER]).current_dir(dir.path()).stdout(Stdio::piped());
    let mut child = python.spawn().expect("Python 3 is there");
    let mut port = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut port).unwrap();
    let port = port.trim();
    let good = send(&format!("https://localhost:{port}"), dir.path(), "ca.pem");
    let stranger = send(&format!("https://localhost:{port}"), dir.path(), "other.pem");
    let other_name = send(&format!("https://127.0.0.1:{port}"), dir.path(), "ca.pem");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(good, "0 sent\n1 sent\n2 sent\n");
    for told in [stranger, other_name] {
        assert!(told.lines().count() == 3 && told.lines().all(|line| line.contains("error No")), "{told}");
        assert!(told.contains("TLS"), "{told}");
    }
}
