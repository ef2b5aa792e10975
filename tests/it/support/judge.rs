//! A judge behind a URL that answers as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Serves chat completions; `answer` sees the whole request. Gives the address for `models: { j: { url: … } }`.
pub fn judge(answer: fn(&str) -> i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that went away needs no answer.
            let _ = reply(stream, answer);
        }
    });
    format!("http://{address}")
}

fn reply(mut stream: TcpStream, answer: fn(&str) -> i64) -> std::io::Result<()> {
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
    let choice = answer(&String::from_utf8_lossy(&body)).to_string();
    let body = serde_json::json!({ "choices": [{ "message": { "content": choice } }] }).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
