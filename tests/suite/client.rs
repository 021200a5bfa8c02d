//! A raw HTTP/1.1 client for the tests: it sends the bytes it is given and reads answers by their Content-Length.
//!
//! Limitations: no chunked bodies, no redirects; an answer that takes longer than ten seconds is an error.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One answer of a server.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header; the case of its name does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, buffer: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// The next answer to a GET or POST; `None` if the server closes the connection instead.
    pub fn reply(&mut self) -> io::Result<Option<Reply>> {
        self.reply_to("GET")
    }

    /// The same for any method: an answer to HEAD has no body.
    pub fn reply_to(&mut self, method: &str) -> io::Result<Option<Reply>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.more()? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let headers = lines.map(|line| line.split_once(": ").map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
        let (Some(status), Some(headers)) = (status, headers) else { return Err(io::Error::other(head)) };
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length = reply.header("Content-Length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        if method != "HEAD" && status >= 200 {
            while self.buffer.len() < length {
                if self.more()? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            reply.body = self.buffer.drain(..length).collect();
        }
        Ok(Some(reply))
    }

    /// Whether the server closes the connection without another byte; a reset counts.
    pub fn closed(&mut self) -> bool {
        match self.more() {
            Ok(count) => count == 0 && self.buffer.is_empty(),
            Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let count = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// Sends one request on a new connection; the error says why there is no answer.
pub fn request(to: SocketAddr, method: &str, path: &str, more: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    more.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut client = Client::connect(to)?;
    client.send([head.as_bytes(), b"\r\n", body].concat())?;
    client.reply_to(method)?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

/// The answer to a GET. Fails if there is none.
pub fn get(address: SocketAddr, path: &str) -> Reply {
    request(address, "GET", path, &[], b"").expect("the server answers")
}
