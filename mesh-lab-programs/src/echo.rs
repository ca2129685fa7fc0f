//! A server that says one text, with the flags and answers of HashiCorp's http-echo 1.0.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};

use crate::server::Body;

/// The version whose behaviour this is.
pub const VERSION: &str = "1.0.0";

/// What it was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Address to listen at; `:5678` means every address.
    pub listen: String,
    /// What it says.
    pub text: String,
    /// With which status.
    pub status: StatusCode,
}

/// What the words of the command line ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// To serve.
    Serve(Settings),
    /// The version.
    Version,
}

/// Reads the command line: Go's flags, with one dash or two, `-name value` or `-name=value`. `default_text` is the variable `ECHO_TEXT`.
///
/// # Errors
/// A word for the person; the program ends with code 127.
pub fn parse(words: &[String], default_text: Option<String>) -> Result<Asked, String> {
    let mut settings = Settings { listen: ":5678".to_owned(), text: default_text.unwrap_or_default(), status: StatusCode::OK };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
            return Err("Too many arguments!".to_owned());
        };
        let (name, given) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let mut value = || given.clone().or_else(|| rest.next().cloned()).ok_or_else(|| format!("flag needs an argument: -{name}"));
        match name {
            "listen" => settings.listen = value()?,
            "text" => settings.text = value()?,
            "status-code" => {
                let number = value()?;
                let status = number.parse().ok().and_then(|number: u16| StatusCode::from_u16(number).ok());
                settings.status = status.ok_or_else(|| format!("invalid value \"{number}\" for flag -status-code"))?;
            }
            "version" => return Ok(Asked::Version),
            _ => return Err(format!("flag provided but not defined: -{name}")),
        }
    }
    if settings.text.is_empty() { Err("Missing -text option or ECHO_TEXT env var!".to_owned()) } else { Ok(Asked::Serve(settings)) }
}

/// The address to bind, in Rust's form.
pub fn address(listen: &str) -> String {
    if listen.starts_with(':') { format!("[::]{listen}") } else { listen.to_owned() }
}

/// The answer to a request for this path.
pub fn answer(settings: &Settings, path: &str) -> Response<Body> {
    let (status, kind, text) = match path {
        "/health" => (StatusCode::OK, "application/json", "{\"status\":\"ok\"}".to_owned()),
        _ => (settings.status, "text/plain; charset=utf-8", format!("{}\n", settings.text)),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("x-app-name", HeaderValue::from_static("http-echo"));
    headers.insert("x-app-version", HeaderValue::from_static(VERSION));
    response
}

#[cfg(test)]
mod tests {
    use super::{Asked, Settings, address, answer, parse};
    use http::StatusCode;
    use http_body_util::BodyExt as _;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn settings(text: &str) -> Settings {
        Settings { listen: ":5678".to_owned(), text: text.to_owned(), status: StatusCode::OK }
    }

    #[test]
    fn reads_flags_as_go_does() {
        assert_eq!(parse(&words(&["-text=Hello, Istio"]), None), Ok(Asked::Serve(settings("Hello, Istio"))));
        assert_eq!(parse(&words(&["--text", "a=b"]), Some("x".to_owned())), Ok(Asked::Serve(settings("a=b"))));
        assert_eq!(parse(&[], Some("x".to_owned())), Ok(Asked::Serve(settings("x"))));
        assert_eq!(parse(&words(&["-version"]), None), Ok(Asked::Version));
        let all = Settings { listen: "127.0.0.1:80".to_owned(), text: "t".to_owned(), status: StatusCode::IM_A_TEAPOT };
        assert_eq!(parse(&words(&["-listen=127.0.0.1:80", "-status-code", "418", "-text=t"]), None), Ok(Asked::Serve(all)));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for bad in [&["-text=a", "b"][..], &["-texts=a"], &["-text"], &[], &["-text=a", "-status-code=abc"], &["-text=a", "-"]] {
            assert!(parse(&words(bad), None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_port_alone_is_every_address() {
        assert_eq!(address(":5678"), "[::]:5678");
        assert_eq!(address("127.0.0.1:1"), "127.0.0.1:1");
    }

    #[tokio::test]
    async fn says_its_text_with_a_newline() {
        let response = answer(&settings("hi"), "/any/path");
        assert_eq!(response.headers()["x-app-name"], "http-echo");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi\n");
        let health = answer(&settings("hi"), "/health").into_body().collect().await.unwrap().to_bytes();
        assert_eq!(health, "{\"status\":\"ok\"}");
    }
}
