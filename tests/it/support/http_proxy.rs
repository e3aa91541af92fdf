//! HTTP proxy on a port of this machine. It takes every name for this machine, so that a request which does
//! not go through it finds no host.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Behaviour of a proxy.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Value of the `Proxy-Authorization` header without which it answers 407.
    pub credentials: Option<String>,
    /// Status that it answers to everything else.
    pub status: Option<u16>,
}

#[derive(Default)]
struct State {
    manners: Manners,
    /// Requests for each host that were answered with a connection.
    connected: Mutex<BTreeMap<String, usize>>,
    /// Requests for each host, refused ones included.
    asked: Mutex<BTreeMap<String, usize>>,
}

/// A running proxy.
pub struct HttpProxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl HttpProxy {
    pub fn start() -> Self {
        Self::start_with(Manners::default())
    }

    pub fn start_with(manners: Manners) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { manners, ..State::default() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), Arc::clone(&shared));
                // A client that goes away is no fault of the proxy.
                thread::spawn(move || serve(client, &state));
            }
        });
        Self { address, state }
    }

    /// Host and port of the proxy.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of requests for a host that were answered with a connection.
    pub fn connected(&self, host: &str) -> usize {
        self.state.connected.lock().unwrap().get(host).copied().unwrap_or_default()
    }

    /// Hosts that were asked for, refused requests included.
    pub fn hosts(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().keys().cloned().collect()
    }

    /// Number of requests, refused ones included.
    pub fn asked(&self) -> usize {
        self.state.asked.lock().unwrap().values().sum()
    }
}

/// Reads a request up to the empty line; returns its lines, and the bytes after them.
fn head(client: &mut TcpStream) -> io::Result<(Vec<String>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let text = String::from_utf8(bytes).map_err(io::Error::other)?;
            return Ok((
                text.split("\r\n").filter(|line| !line.is_empty()).map(str::to_owned).collect(),
                rest,
            ));
        }
        match client.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

/// Answers one request; the connection ends with it.
fn serve(mut client: TcpStream, state: &State) -> io::Result<()> {
    let (lines, rest) = head(&mut client)?;
    let words: Vec<&str> = lines[0].split(' ').collect();
    let (method, target) = (words[0], words[1]);
    let is_tunnel = method == "CONNECT";
    let (authority, path) = if is_tunnel {
        (target, String::new())
    } else {
        let absolute =
            target.strip_prefix("http://").ok_or_else(|| io::Error::other("not in absolute form"))?;
        let end = absolute.find(['/', '?']).unwrap_or(absolute.len());
        (&absolute[..end], absolute[end..].to_owned())
    };
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    *state.asked.lock().unwrap().entry(host.to_owned()).or_default() += 1;
    let sent = |name: &str| {
        lines.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let Manners { credentials, status } = &state.manners;
    if credentials.is_some() && sent("proxy-authorization") != *credentials {
        return answer(&mut client, 407, "Proxy-Authenticate: Basic realm=\"proxy\"\r\n");
    }
    if let Some(status) = status {
        return answer(&mut client, *status, "");
    }
    *state.connected.lock().unwrap().entry(host.to_owned()).or_default() += 1;
    let mut server =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse::<u16>().map_err(io::Error::other)?))?;
    if is_tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    } else {
        // The credentials are the proxy's own, and the server's answer ends the connection.
        let is_ours = |line: &&String| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !matches!(name.as_str(), "proxy-authorization" | "proxy-connection" | "connection")
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for line in lines.iter().skip(1).filter(is_ours) {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        server.write_all(request.as_bytes())?;
    }
    server.write_all(&rest)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upstream = thread::spawn(move || {
        let copied = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
        copied
    });
    let copied = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upstream.join();
    copied.map(|_| ())
}

fn answer(client: &mut TcpStream, status: u16, headers: &str) -> io::Result<()> {
    let text = format!("HTTP/1.1 {status} No\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(text.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    // Until the client has closed: closing with its bytes unread would reset the connection.
    io::copy(client, &mut io::sink()).map(|_| ())
}
