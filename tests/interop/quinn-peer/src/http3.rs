//! HTTP/3 by h3 on quinn, as a client: what it asks is answered by a server that says `hello` to whoever sends no body
//! and otherwise sends it back.

use std::future::poll_fn;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::Code;
use h3_quinn::{BidiStream, OpenStreams};
use http::{Request, Response, StatusCode};
use quinn::Connection;

use crate::Failure;

type Sender = SendRequest<OpenStreams, Bytes>;
type Stream = RequestStream<BidiStream<Bytes>, Bytes>;

/// Does what the case says, over one connection.
pub(crate) async fn run(quic: Connection, authority: &str, case: &str) -> Result<(), Failure> {
    let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(quic)).await?;
    let driving = tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await.to_string() });
    let base = format!("https://{authority}");
    match case {
        "requests" => {
            for _ in 0..100 {
                hello(&mut sender, &base).await?;
            }
            let all: Vec<_> = (0..100)
                .map(|_| {
                    let (mut sender, base) = (sender.clone(), base.clone());
                    tokio::spawn(async move { hello(&mut sender, &base).await })
                })
                .collect();
            for one in all {
                one.await??;
            }
        }
        "bodies" => bodies(&mut sender, &base).await?,
        "heads" => heads(&mut sender, &base).await?,
        "given_up" => {
            // The server never answers it: the answer is given up, and then a request in the midst of its body. In
            // between they have the time to reach the server, which tells nobody.
            let mut stream = sender.send_request(get(&base, "/never?1")?).await?;
            stream.finish().await?;
            hello(&mut sender, &base).await?;
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
            drop(stream);
            let mut stream = sender.send_request(Request::post(format!("{base}/never?2")).body(())?).await?;
            stream.send_data(Bytes::from_static(b"half")).await?;
            hello(&mut sender, &base).await?;
            stream.stop_stream(Code::H3_REQUEST_CANCELLED);
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
            drop(stream);
            hello(&mut sender, &base).await?;
        }
        "broken_off" => {
            for path in ["/truncated", "/truncated-chunks"] {
                let mut stream = sender.send_request(get(&base, path)?).await?;
                stream.finish().await?;
                // The reset may overtake the head.
                let came = match stream.recv_response().await {
                    Ok(_) => body(&mut stream).await,
                    Err(error) => Err(error),
                };
                match came {
                    Err(error) if error.to_string().contains("H3_INTERNAL_ERROR") => {}
                    Err(error) => return Err(format!("{path}: {error}").into()),
                    Ok(all) => return Err(format!("{path}: {} bytes were a whole answer", all.len()).into()),
                }
                hello(&mut sender, &base).await?;
            }
        }
        _ => return Err(format!("no case {case}").into()),
    }
    drop(sender);
    // Without requests h3 ends the connection, with H3_NO_ERROR.
    println!("ok end={}", driving.await?.replace(' ', "_"));
    Ok(())
}

fn get(base: &str, path: &str) -> Result<Request<()>, Failure> {
    Ok(Request::get(format!("{base}{path}")).body(())?)
}

async fn body(stream: &mut Stream) -> Result<Vec<u8>, h3::error::StreamError> {
    let mut all = Vec::new();
    while let Some(mut piece) = stream.recv_data().await? {
        while piece.has_remaining() {
            let chunk = piece.chunk();
            let count = chunk.len();
            all.extend_from_slice(chunk);
            piece.advance(count);
        }
    }
    Ok(all)
}

async fn answered(stream: &mut Stream) -> Result<(Response<()>, Vec<u8>), Failure> {
    stream.finish().await?;
    let answer = stream.recv_response().await?;
    let all = body(stream).await?;
    Ok((answer, all))
}

async fn hello(sender: &mut Sender, base: &str) -> Result<(), Failure> {
    let mut stream = sender.send_request(get(base, "/hello")?).await?;
    let (answer, all) = answered(&mut stream).await?;
    if answer.status() == StatusCode::OK && all == b"hello" {
        Ok(())
    } else {
        Err(format!("{} and {} bytes", answer.status(), all.len()).into())
    }
}

/// Bodies of many sizes come back, in both directions at once; trailers come behind one.
async fn bodies(sender: &mut Sender, base: &str) -> Result<(), Failure> {
    for size in [1, 1_000, 100_000, 3_000_000] {
        let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let stream = sender.send_request(Request::post(format!("{base}/echo")).body(())?).await?;
        let (mut send, mut receive) = stream.split();
        let pieces = sent.clone();
        let sending = async move {
            for piece in pieces.chunks(10_000) {
                send.send_data(Bytes::copy_from_slice(piece)).await?;
            }
            send.finish().await
        };
        let receiving = async {
            let answer = receive.recv_response().await?;
            let mut all = Vec::new();
            while let Some(mut piece) = receive.recv_data().await? {
                let count = piece.remaining();
                all.extend_from_slice(&piece.copy_to_bytes(count));
            }
            Ok((answer, all))
        };
        let ((), (answer, all)) = tokio::try_join!(sending, receiving)?;
        if answer.status() != StatusCode::OK || all != sent {
            return Err(format!("{}: {} of {size} bytes came back", answer.status(), all.len()).into());
        }
    }
    let mut stream = sender.send_request(get(base, "/chunks")?).await?;
    let (_, all) = answered(&mut stream).await?;
    let trailers = stream.recv_trailers().await?.ok_or("no trailers")?;
    if all != b"hello world" || trailers.get("x-end").is_none_or(|end| end != "yes") {
        return Err(format!("{} bytes, {trailers:?}", all.len()).into());
    }
    Ok(())
}

/// What has only a head, and a head that is too large.
async fn heads(sender: &mut Sender, base: &str) -> Result<(), Failure> {
    let mut stream = sender.send_request(Request::head(format!("{base}/hello")).body(())?).await?;
    let (answer, all) = answered(&mut stream).await?;
    let length = answer.headers().get("content-length").ok_or("no length")?;
    if length != "5" || !all.is_empty() {
        return Err(format!("{length:?} and {} bytes", all.len()).into());
    }
    // A few fields more than the server takes; in all less than it says it takes in bytes, which h3 holds to.
    let mut many = Request::get(format!("{base}/hello"));
    for n in 0..200 {
        many = many.header(format!("x-{n}"), "y");
    }
    let mut stream = sender.send_request(many.body(())?).await?;
    let (answer, _) = answered(&mut stream).await?;
    if answer.status() != StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        return Err(format!("{} to 200 fields", answer.status()).into());
    }
    hello(sender, base).await
}
