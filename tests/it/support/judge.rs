//! A judge behind a URL that answers as a test says.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Serves chat completions; `answer` sees the whole request. Gives the address for `models: { j: { url: … } }`.
pub fn judge(answer: impl Fn(&str) -> i64 + Send + Sync + 'static) -> String {
    judge_telling(answer, |_| {})
}

/// Likewise; `told` sees each request that is answered, which one is not whose client has gone away meanwhile.
pub fn judge_telling(
    answer: impl Fn(&str) -> i64 + Send + Sync + 'static,
    told: impl Fn(&str) + Send + Sync + 'static,
) -> String {
    let (answer, told) = (Arc::new(answer), Arc::new(told));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (answer, told) = (Arc::clone(&answer), Arc::clone(&told));
            // A client that went away needs no answer.
            std::thread::spawn(move || reply(stream, &*answer, &*told));
        }
    });
    format!("http://{address}")
}

fn reply(
    mut stream: TcpStream,
    answer: &dyn Fn(&str) -> i64,
    told: &dyn Fn(&str),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = String::from_utf8_lossy(&body);
    let choice = answer(&request).to_string();
    stream.set_nonblocking(true)?;
    // Nothing more is to be read from a client that still waits; from one that is gone, its end.
    match stream.peek(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => told(&request),
        _ => return Ok(()),
    }
    stream.set_nonblocking(false)?;
    let body = serde_json::json!({ "choices": [{ "message": { "content": choice } }] }).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
