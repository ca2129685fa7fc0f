//! Lists of HTTP requests that the peer program makes one after the other (`ask`), and what came of each.
//!
//! One start of the program makes a whole list: where every start costs (an exec in a pod), a table of requests costs one.

use serde::{Deserialize, Serialize};

use crate::peer::HttpSeen;

/// A request to make, each time on a connection of its own.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// `http://<host>[:<port>]/<path>`, sent as it stands.
    pub url: String,
    /// Lines of the head. `host` is in place of the one of the URL.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default)]
    pub body: String,
    /// HTTP/2 with prior knowledge, not HTTP/1.1.
    #[serde(default)]
    pub http2: bool,
    /// A call of gRPC with an empty message; HTTP/2.
    #[serde(default)]
    pub grpc: bool,
    /// Headers of earlier answers of the list to send back, each with the name to send it by. A cookie goes without its attributes.
    #[serde(default)]
    pub carry: Vec<(String, String)>,
    /// How often to make it.
    pub times: u32,
    /// Milliseconds after which it is given up.
    pub limit: u64,
}

/// What came of a request.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Answered {
    /// The status code; 0 if there was no answer.
    pub status: u16,
    /// Lines of the head, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, at most its first 64 KiB, as text.
    pub body: String,
    /// Lines of the trailers.
    pub trailers: Vec<(String, String)>,
    /// Milliseconds from the start of its connection to the end of its answer.
    pub millis: u64,
    /// Why there was no answer.
    pub error: Option<String>,
}

impl Answered {
    /// A header's values, joined by commas; `None` if it is absent.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// The status of a call of gRPC: of its trailers or, where it has no message, of its head.
    pub fn grpc_status(&self) -> Option<u16> {
        self.trailers.iter().chain(&self.headers).find(|(key, _)| key == "grpc-status")?.1.parse().ok()
    }

    /// What a server of the peer program says that it was asked; `None` if nobody of the kind answered.
    pub fn seen(&self) -> Option<HttpSeen> {
        // A message of gRPC has five bytes before it.
        serde_json::from_str(self.body.get(self.body.find('{')?..)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Answered, Asked};

    #[test]
    fn reads_what_was_left_out_as_nothing() {
        let asked: Asked = serde_json::from_str(r#"{"method":"GET","url":"http://a/","times":2,"limit":1000}"#).expect("reads");
        assert_eq!((asked.times, asked.grpc, asked.headers.len()), (2, false, 0));
        assert!(serde_json::from_str::<Asked>(r#"{"method":"GET","url":"http://a/","times":1,"limit":1,"novel":1}"#).is_err());
    }

    #[test]
    fn joins_values_and_finds_grpcs_status() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut answer = Answered { headers: vec![pair("x", "1"), pair("y", ""), pair("x", "2")], ..Answered::default() };
        assert_eq!((answer.header("x"), answer.header("y"), answer.header("z")), (Some("1,2".into()), Some(String::new()), None));
        assert_eq!(answer.grpc_status(), None);
        answer.headers.push(pair("grpc-status", "12"));
        assert_eq!(answer.grpc_status(), Some(12));
        answer.trailers.push(pair("grpc-status", "0"));
        assert_eq!(answer.grpc_status(), Some(0));
        assert!(answer.seen().is_none());
    }
}
