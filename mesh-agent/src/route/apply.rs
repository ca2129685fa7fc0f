//! One filter of a rule, done to a request. Chance and time are the caller's. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use mesh_model::route::{Fault, Filter, HeaderEdit, HttpRule, Target};

use super::{cors, filter};
use crate::outcome::{Outcome, RequestFailure};

/// What a filter came to. A `share` is of how many requests it is for: the first number of the second.
#[derive(Debug)]
pub enum Applied<'f> {
    /// The request is changed.
    Request,
    /// The response is to be changed.
    Response(&'f HeaderEdit),
    /// The response gets these headers.
    Cors(HeaderMap),
    /// A copy goes there.
    Mirror {
        /// Where.
        target: &'f Target,
        /// Of which requests.
        share: (u32, u32),
    },
    /// It waits first.
    Delay {
        /// How long.
        time: Duration,
        /// Which requests do.
        share: (u32, u32),
    },
    /// It fails.
    Abort {
        /// So.
        error: RequestFailure,
        /// Which requests do.
        share: (u32, u32),
    },
    /// This is the answer, and nothing is forwarded.
    Answer(Response<Bytes>),
}

/// Does what a filter of a rule says. `port` is the Service's port that was dialled.
///
/// # Errors
/// The filter cannot be done: what comes out would be no request, or it is not supported.
pub fn apply<'f>(one: &'f Filter, parts: &mut Parts, rule: &HttpRule, port: u16) -> Result<Applied<'f>, Outcome> {
    let impossible = |error: filter::Impossible| invalid(rule, &error.to_string());
    Ok(match one {
        Filter::RequestHeaders(edit) => {
            filter::edit_request(&mut parts.uri, &mut parts.headers, edit).map_err(impossible)?;
            Applied::Request
        }
        Filter::Rewrite(change) => {
            filter::rewrite(&mut parts.uri, &mut parts.headers, change, &rule.matches).map_err(impossible)?;
            Applied::Request
        }
        Filter::ResponseHeaders(edit) => Applied::Response(edit),
        Filter::Redirect(redirect) => {
            let location = filter::location(redirect, &parts.uri, &parts.headers, &rule.matches, port).map_err(impossible)?;
            let mut answer = Response::new(Bytes::new());
            *answer.status_mut() = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            answer.headers_mut().insert(http::header::LOCATION, location);
            Applied::Answer(answer)
        }
        Filter::Mirror { target, share } => Applied::Mirror { target, share: *share },
        Filter::Cors(rules) => match cors::decide(rules, &parts.method, &parts.headers) {
            cors::Decision::Preflight(headers) => {
                let mut answer = Response::new(Bytes::new());
                *answer.headers_mut() = headers;
                Applied::Answer(answer)
            }
            cors::Decision::Pass(headers) => Applied::Cors(headers),
        },
        Filter::Respond { status, body } => {
            let mut answer = Response::new(Bytes::copy_from_slice(body));
            *answer.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::OK);
            Applied::Answer(answer)
        }
        Filter::Delay { time, share } => Applied::Delay { time: *time, share: *share },
        Filter::Abort { fault, share } => {
            let (status, grpc) = match fault {
                Fault::Http(status) => (*status, None),
                Fault::Grpc(status) => (200, Some(*status)),
            };
            let error = RequestFailure::FaultInjected { rule: rule.origin.to_string().into(), status, grpc };
            Applied::Abort { error, share: *share }
        }
        Filter::Refuse(reason) => return Err(invalid(rule, reason)),
    })
}

/// How a request ends whose rule has no backend that it may go to.
pub fn no_backend(rule: &HttpRule) -> Outcome {
    invalid(rule, "it has no backend with a weight")
}

fn invalid(rule: &HttpRule, what: &str) -> Outcome {
    Outcome::Request(RequestFailure::InvalidRoute { detail: format!("{}: {what}", rule.origin).into() })
}
