//! The least that one can put behind `ssh -R`: hyper as it comes, one thread, the answer made beforehand.

use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::Ipv4Addr,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

/// What the child process does: it reads token and marker, one a line, and says its port.
pub(crate) fn main() {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let mut lines = io::stdin().lines().map(Result::unwrap);
    let token: &'static str = lines.next().unwrap().leak();
    let body = body(&lines.next().unwrap());
    drop(lines);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(token, body));
}

/// As large as the answer of `broker`, with the same fields.
fn body(marker: &str) -> Bytes {
    let token = "x".repeat(801);
    let body = json!({
        "Version": 1,
        "AccessKeyId": marker,
        "SecretAccessKey": "x".repeat(40),
        "Token": token,
        "SessionToken": token,
        "Expiration": "2099-12-31T23:59:59Z",
        "AccountId": "123456789012",
    });
    Bytes::from(body.to_string())
}

async fn serve(token: &'static str, body: Bytes) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    io::stdout().flush().unwrap();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                stream.set_nodelay(true).unwrap();
                let body = body.clone();
                connections.spawn(async move {
                    let answer = service_fn(move |request| {
                        let answer = answer(&request, token, &body);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    // How a connection ended is the client's to tell.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
                });
            }
            Some(ended) = connections.join_next() => ended.unwrap(),
        }
    }
}

fn answer(request: &Request<Incoming>, token: &str, body: &Bytes) -> Response<Full<Bytes>> {
    if request.headers().get(header::AUTHORIZATION).is_none_or(|sent| sent.as_bytes() != token.as_bytes()) {
        let mut refusal = Response::new(Full::default());
        *refusal.status_mut() = StatusCode::UNAUTHORIZED;
        return refusal;
    }
    let mut answer = Response::new(Full::new(body.clone()));
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}
