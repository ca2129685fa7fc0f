//! Says one text to everyone, as HashiCorp's http-echo does.

use std::process::ExitCode;
use std::time::Instant;

use http::header;
use hyper::body::Body as _;
use mesh_lab_programs::{echo, server};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let settings = match echo::parse(&words, std::env::var("ECHO_TEXT").ok()) {
        Ok(echo::Asked::Serve(settings)) => settings,
        Ok(echo::Asked::Version) => {
            eprintln!("http-echo v{} (of Nodemesh's test images)", echo::VERSION);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(127);
        }
    };
    let listener = match TcpListener::bind(echo::address(&settings.listen)).await {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("[ERR] server exited with: listen tcp {}: {error}", settings.listen);
            return ExitCode::FAILURE;
        }
    };
    println!("{} [INFO] server is listening on {}", now(), settings.listen);
    let served = server::serve(listener, move |peer, request| {
        let start = Instant::now();
        let response = echo::answer(&settings, request.uri().path());
        let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        println!(
            "{} {} {peer} \"{} {} {:?}\" {} {} \"{}\" {:?}",
            now(),
            field(header::HOST),
            request.method(),
            request.uri(),
            request.version(),
            response.status().as_u16(),
            response.body().size_hint().exact().unwrap_or_default(),
            field(header::USER_AGENT),
            start.elapsed()
        );
        async move { response }
    });
    match served.await {
        Ok(()) => {
            println!("{} [INFO] received interrupt, shutting down...", now());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("[ERR] {error}");
            ExitCode::FAILURE
        }
    }
}

fn now() -> String {
    let form = format_description!("[year]/[month]/[day] [hour]:[minute]:[second]");
    OffsetDateTime::now_utc().format(form).unwrap_or_default()
}
