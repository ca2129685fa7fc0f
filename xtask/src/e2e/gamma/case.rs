//! A row of a table: a request, and what must come of it.

use mesh_lab::ask::Asked;

/// How long a request may take before its client gives it up; longer than anything that a route of the tables allows.
const LIMIT: u64 = 5000;

/// What must hold of the answers to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Want {
    /// The status code.
    Status(u16),
    /// gRPC's status.
    Grpc(u16),
    /// Which server answered.
    By(&'static str),
    /// No server did: the mesh answered.
    ByNobody,
    /// The server that answered the request before it answers all.
    AsBefore,
    /// Each of these servers answered some, and no other.
    Among(&'static [&'static str]),
    /// Servers' shares of the answers in percent, 5 points more or less; `-` is nobody's.
    Shares(&'static [(&'static str, usize)]),
    /// A header of the answer, its values joined by commas.
    Header(&'static str, String),
    /// A header of the answer that is not there.
    NoHeader(&'static str),
    /// Path and query that the server saw.
    Target(String),
    /// The host that it saw.
    Host(&'static str),
    /// A header that it saw, its lines joined by commas.
    Seen(&'static str, &'static str),
    /// A header that it did not see.
    NotSeen(&'static str),
    /// The version of HTTP that it was spoken to.
    Version(&'static str),
    /// Bytes of the body that it got.
    Body(usize),
    /// The answer took so many milliseconds at least.
    AtLeast(u64),
}

/// A request and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows, for whoever reads that it does not.
    pub why: &'static str,
    /// The request. `{run}` in its URL is another word in each run of the table.
    pub asked: Asked,
    /// What must hold of every answer, or of all together.
    pub wants: Vec<Want>,
}

/// A GET of `host[:port]/path`.
pub fn get(why: &'static str, at: impl AsRef<str>) -> Case {
    request(why, "GET", at)
}

/// A request of that method for `host[:port]/path`.
pub fn request(why: &'static str, method: &str, at: impl AsRef<str>) -> Case {
    let asked = Asked {
        method: method.to_owned(),
        url: format!("http://{}", at.as_ref()),
        headers: Vec::new(),
        body: String::new(),
        http2: false,
        grpc: false,
        carry: Vec::new(),
        times: 1,
        limit: LIMIT,
    };
    Case { why, asked, wants: Vec::new() }
}

/// A call of gRPC: `host[:port]/service/method`.
pub fn call(why: &'static str, at: impl AsRef<str>) -> Case {
    let mut case = request(why, "POST", at);
    case.asked.grpc = true;
    case
}

impl Case {
    /// With a header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.asked.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body.
    pub fn sending(mut self, body: &str) -> Self {
        body.clone_into(&mut self.asked.body);
        self
    }

    /// By HTTP/2.
    pub fn http2(mut self) -> Self {
        self.asked.http2 = true;
        self
    }

    /// So many times, each on a connection of its own.
    pub fn times(mut self, times: u32) -> Self {
        self.asked.times = times;
        self
    }

    /// With what an earlier answer said in a header.
    pub fn carrying(mut self, from: &str, to: &str) -> Self {
        self.asked.carry.push((from.to_owned(), to.to_owned()));
        self
    }

    /// What must hold.
    pub fn wants(mut self, want: Want) -> Self {
        self.wants.push(want);
        self
    }

    /// The status code.
    pub fn status(self, status: u16) -> Self {
        self.wants(Want::Status(status))
    }

    /// The mesh answers, with this status.
    pub fn refused(self, status: u16) -> Self {
        self.status(status).wants(Want::ByNobody)
    }

    /// That server answers well.
    pub fn by(self, name: &'static str) -> Self {
        let grpc = self.asked.grpc;
        let case = self.status(200).wants(Want::By(name));
        if grpc { case.wants(Want::Grpc(0)) } else { case }
    }

    /// A redirection.
    pub fn redirected(self, status: u16, location: impl Into<String>) -> Self {
        self.refused(status).wants(Want::Header("location", location.into()))
    }

    /// A header of the answer.
    pub fn header(self, name: &'static str, value: impl Into<String>) -> Self {
        self.wants(Want::Header(name, value.into()))
    }
}
