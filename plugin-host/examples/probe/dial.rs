//! What the test double tries when it is asked to: ways out of its network, files, devices.
//!
//! A request is JSON: `{"how": …, "host": …, "port": …, "path": …}`, or an array of these. The
//! answer is JSON, too: `{"said": …}` or `{"error": …}`, or an array.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

/// Longer than the proxy waits for a slow head.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn try_it(request: &[u8]) -> Vec<u8> {
    match serde_json::from_slice(request).unwrap_or_default() {
        Value::Array(several) => Value::from(several.iter().map(one).collect::<Vec<_>>()),
        request => one(&request),
    }
    .to_string()
    .into_bytes()
}

fn one(request: &Value) -> Value {
    let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
    let (host, path) = (text("host"), text("path"));
    let port = request["port"].as_u64().unwrap_or_default() as u16;
    let outcome = match text("how").as_str() {
        "direct" => direct(&host, port),
        "connect" => tunnel(&host, port),
        "http" => forwarded(&host, port),
        "socks" => socks(&host, port),
        "slow" => slow(),
        "hold" => hold(&host, port),
        "read" => std::fs::read_to_string(&path),
        "write" => std::fs::write(&path, "written inside").map(|()| "written".into()),
        "device" => device(&path),
        other => Err(io::Error::other(format!("{other:?} is nothing to try"))),
    };
    match outcome {
        Ok(said) => json!({ "said": said }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn proxy() -> io::Result<TcpStream> {
    let proxy = std::env::var("HTTPS_PROXY").map_err(io::Error::other)?;
    let address = proxy.strip_prefix("http://").unwrap_or(&proxy);
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn direct(host: &str, port: u16) -> io::Result<String> {
    converse(TcpStream::connect((host, port))?)
}

/// Says something, and gives what is answered until the end.
fn converse(mut stream: TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello from inside\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn tunnel(host: &str, port: u16) -> io::Result<String> {
    let mut stream = proxy()?;
    write!(stream, "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")?;
    let head = head(&mut stream)?;
    if head.starts_with("HTTP/1.1 200") {
        return converse(stream);
    }
    Err(io::Error::other(format!("{head}{}", rest(&mut stream, &head)?)))
}

/// Byte by byte, so that nothing of what follows is taken.
fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A body of the length that the head tells.
fn rest(stream: &mut TcpStream, head: &str) -> io::Result<String> {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn forwarded(host: &str, port: u16) -> io::Result<String> {
    let mut stream = proxy()?;
    write!(
        stream,
        "GET http://{host}:{port}/a?b=c HTTP/1.1\r\nHost: elsewhere\r\nConnection: x-hop\r\n\
         X-Hop: 1\r\nProxy-Connection: keep-alive\r\nX-End: 2\r\n\r\n"
    )?;
    let head = head(&mut stream)?;
    Ok(format!("{head}{}", rest(&mut stream, &head)?))
}

fn socks(host: &str, port: u16) -> io::Result<String> {
    let mut stream = proxy()?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    let mut request = vec![5, 1, 0];
    if let Ok(address) = host.parse::<std::net::Ipv4Addr>() {
        request.push(1);
        request.extend(address.octets());
    } else {
        request.extend([3, host.len() as u8]);
        request.extend(host.as_bytes());
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    if answer[1] == 0 {
        converse(stream)
    } else {
        Err(io::Error::other(format!("socks {}", answer[1])))
    }
}

/// Begins a head and never ends it.
fn slow() -> io::Result<String> {
    let mut stream = proxy()?;
    stream.write_all(b"GET http://example.org/ HTTP/1.1\r\nX-Slow: ")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(format!("closed after: {said}"))
}

/// Opens a tunnel and keeps it.
fn hold(host: &str, port: u16) -> io::Result<String> {
    let mut stream = proxy()?;
    write!(stream, "CONNECT {host}:{port} HTTP/1.1\r\n\r\n")?;
    let head = head(&mut stream)?;
    std::mem::forget(stream);
    Ok(head)
}

fn device(path: &str) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut bytes = [1; 16];
    file.read_exact(&mut bytes)?;
    Ok(format!("{bytes:?}"))
}
