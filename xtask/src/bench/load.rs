//! The loads, the programs that make them, and what those say.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Pod;
use serde::{Deserialize, Serialize};

/// A larger share of the CPU time, taken by other programs, disturbs.
const DISTURBED: f64 = 0.03;

/// Written into the world; wrk calls it at the end.
pub const SCRIPT: &str = r#"done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"micros":%d,"bytes":%d,"p50_micros":%d,"p99_micros":%d,"failures":%d,"rejected":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.timeout, e.status))
end
"#;

/// What is asked of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Load {
    /// Requests one after the other on one connection.
    #[value(name = "one")]
    One,
    /// Requests on 32 connections at once.
    #[value(name = "many")]
    Many,
    /// A new connection for each request, 32 at once.
    #[value(name = "new")]
    New,
    /// One stream of bytes from client to server.
    #[value(name = "bulk")]
    Bulk,
}

impl Load {
    /// All of them, in the table's order.
    pub const ALL: [Self; 4] = [Self::One, Self::Many, Self::New, Self::Bulk];

    /// Its name in JSON, with the unit of its value.
    pub fn key(self) -> &'static str {
        match self {
            Self::One => "requests_per_second_1",
            Self::Many => "requests_per_second_32",
            Self::New => "new_connections_per_second",
            Self::Bulk => "bulk_gbit_per_second",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::One => "rps, 1 conn",
            Self::Many => "rps, 32 conns",
            Self::New => "new conns/s",
            Self::Bulk => "bulk Gbit/s",
        }
    }
}

/// What one load on one path gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Requests, connections or 10⁹ bits a second, by load.
    pub value: f64,
    /// Requests answered; 0 for bulk.
    pub requests: u64,
    /// Bytes that the client received (bulk: that the server received).
    pub bytes: u64,
    /// Latency of requests; None for bulk.
    pub p50_micros: Option<f64>,
    /// As above.
    pub p99_micros: Option<f64>,
    /// Requests that failed, beside those answered.
    pub failures: u64,
    /// CPU time of the path's own processes, all together.
    pub cpu_seconds: Option<f64>,
    /// Most memory that one of the path's own processes had meanwhile.
    pub rss_bytes: Option<u64>,
    /// Share of the machine's CPU time that others took, 1 being all cores.
    pub others_share: f64,
}

impl Sample {
    /// Other programs took so much of the CPU time that the figures say more about those.
    pub fn is_disturbed(&self) -> bool {
        self.others_share > DISTURBED
    }
}

#[derive(Deserialize)]
struct Wrk {
    requests: u64,
    micros: u64,
    bytes: u64,
    p50_micros: f64,
    p99_micros: f64,
    failures: u64,
    rejected: u64,
}

/// Requests to `url` from the pod, for so long.
pub fn wrk(client: &Pod, script: &std::path::Path, load: Load, url: &str, time: Duration) -> Result<Sample> {
    let (threads, connections) = if load == Load::One { ("1", "1") } else { ("2", "32") };
    let seconds = format!("{}s", time.as_secs().max(1));
    let script = script.to_string_lossy();
    let mut words = vec!["wrk", "-t", threads, "-c", connections, "-d", &seconds, "--timeout", "5s", "-s", &script];
    if load == Load::New {
        words.extend(["-H", "Connection: close"]);
    }
    words.push(url);
    let finished = client.exec(&words, time + Duration::from_secs(15))?;
    parse_wrk(finished.success().context("wrk")?)
}

/// Calls of gRPC to `url` from the pod, for so long; each sends the message in the file.
pub fn h2load(client: &Pod, message: &std::path::Path, load: Load, url: &str, time: Duration) -> Result<Sample> {
    let (threads, connections) = if load == Load::One { ("1", "1") } else { ("2", "32") };
    let seconds = time.as_secs().max(1).to_string();
    let log = message.with_extension("log");
    // It appends.
    let _ = std::fs::remove_file(&log);
    let (message, log_file) = (message.to_string_lossy(), log.to_string_lossy());
    let words = [
        ["h2load", "-t", threads, "-c", connections, "-m", "1", "-D", &seconds, "-d", &message, "--log-file", &log_file].as_slice(),
        &["-H", "content-type: application/grpc", "-H", "te: trailers", url],
    ]
    .concat();
    let finished = client.exec(&words, time + Duration::from_secs(15))?;
    let text = finished.success().context("h2load")?;
    let log = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    parse_h2load(text, &log)
}

/// Reads h2load's summary, and its log: of each request when it began, its status, and the microseconds it took.
fn parse_h2load(text: &str, log: &str) -> Result<Sample> {
    let line =
        |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("h2load wrote no {start}: {text}"));
    let counts = line("requests: ")?;
    let count = |what: &str| -> Result<u64> {
        let number = counts.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
        number.with_context(|| format!("h2load did not count {what}: {counts}"))
    };
    let (done, succeeded) = (count("done")?, count("succeeded")?);
    let failures = count("failed")? + count("errored")? + count("timeout")?;
    let finished = line("finished in ")?;
    let rate: f64 = finished
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s")?.parse().ok())
        .with_context(|| format!("h2load told no rate: {finished}"))?;
    ensure!(done > 0 && rate > 0.0, "no call was answered, {failures} failed");
    ensure!(done == succeeded, "{} of {done} answers had another status than 2xx", done - succeeded);
    ensure!(failures * 100 <= done, "{failures} calls failed beside {done} answered");
    let traffic = line("traffic: ")?;
    let bytes = traffic.split(['(', ')']).nth(1).and_then(|bytes| bytes.parse().ok());
    let mut micros: Vec<u64> = log.lines().filter_map(|line| line.split('\t').nth(2)?.trim().parse().ok()).collect();
    ensure!(!micros.is_empty(), "h2load logged no request");
    micros.sort_unstable();
    let percentile = |percent: usize| micros.get((micros.len() - 1) * percent / 100).map(|micros| *micros as f64);
    Ok(Sample {
        value: rate,
        requests: succeeded,
        bytes: bytes.with_context(|| format!("h2load told no bytes: {traffic}"))?,
        p50_micros: percentile(50),
        p99_micros: percentile(99),
        failures,
        cpu_seconds: None,
        rss_bytes: None,
        others_share: 0.0,
    })
}

fn parse_wrk(text: &str) -> Result<Sample> {
    let line = text.trim_end().lines().last().unwrap_or_default();
    let said: Wrk = serde_json::from_str(line).with_context(|| format!("wrk wrote no summary: {text}"))?;
    ensure!(said.requests > 0 && said.micros > 0, "no request was answered, {} failed", said.failures);
    ensure!(said.rejected == 0, "{} of {} answers had another status than 2xx", said.rejected, said.requests);
    ensure!(said.failures * 100 <= said.requests, "{} requests failed beside {} answered", said.failures, said.requests);
    Ok(Sample {
        value: said.requests as f64 * 1e6 / said.micros as f64,
        requests: said.requests,
        bytes: said.bytes,
        p50_micros: Some(said.p50_micros),
        p99_micros: Some(said.p99_micros),
        failures: said.failures,
        cpu_seconds: None,
        rss_bytes: None,
        others_share: 0.0,
    })
}

/// One stream from the client's pod to `address:port`, behind which an iperf3 server of `server` on `own_port` is found.
pub fn iperf(client: &Pod, server: &Pod, own_port: u16, address: &str, port: u16, time: Duration) -> Result<Sample> {
    let limit = Duration::from_secs(10);
    let mut process = server.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", &own_port.to_string()])?;
    process.wait_for_log("Server listening", limit)?;
    let (port, seconds) = (port.to_string(), time.as_secs().max(1).to_string());
    let words = ["iperf3", "-c", address, "-p", &port, "-t", &seconds, "--connect-timeout", "5000", "-J"];
    let finished = client.exec(&words, time + Duration::from_secs(15))?;
    parse_iperf(&finished.stdout).with_context(|| format!("iperf3 {} {}", finished.stderr.trim(), process.log().trim()))
}

fn parse_iperf(text: &str) -> Result<Sample> {
    let said: serde_json::Value = serde_json::from_str(text).with_context(|| format!("iperf3 wrote no JSON: {text}"))?;
    if let Some(error) = said.get("error").and_then(serde_json::Value::as_str) {
        bail!("{error}");
    }
    let number = |field: &str| said.pointer(&format!("/end/sum_received/{field}")).and_then(serde_json::Value::as_f64);
    let (Some(bits), Some(bytes)) = (number("bits_per_second"), number("bytes")) else { bail!("no sum in {text}") };
    ensure!(bytes > 0.0, "no byte arrived");
    Ok(Sample {
        value: bits / 1e9,
        requests: 0,
        bytes: bytes as u64,
        p50_micros: None,
        p99_micros: None,
        failures: 0,
        cpu_seconds: None,
        rss_bytes: None,
        others_share: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_h2load, parse_iperf, parse_wrk};

    fn summary(requests: u64, failures: u64, rejected: u64) -> String {
        format!(
            "Running 1s test\nRequests/sec: 1\n\n{{\"requests\":{requests},\"micros\":2000000,\"bytes\":9,\"p50_micros\":60,\
             \"p99_micros\":250,\"failures\":{failures},\"rejected\":{rejected}}}\n"
        )
    }

    #[test]
    fn reads_the_summary_of_wrk() {
        let sample = parse_wrk(&summary(3000, 1, 0)).expect("parses");
        assert_eq!((sample.value, sample.p99_micros, sample.failures), (1500.0, Some(250.0), 1));
    }

    #[test]
    fn failed_requests_are_no_measurement() {
        assert!(parse_wrk(&summary(0, 0, 0)).is_err());
        assert!(parse_wrk(&summary(3000, 0, 1)).is_err());
        assert!(parse_wrk(&summary(3000, 31, 0)).is_err());
        assert!(parse_wrk("unable to connect").is_err());
    }

    fn of_h2load(done: u64, succeeded: u64, errored: u64) -> String {
        format!(
            "finished in 2.00s, 1500.50 req/s, 98.00KB/s\nrequests: {done} total, {done} started, {done} done, {succeeded} succeeded, 0 failed, \
             {errored} errored, 0 timeout\nstatus codes: 3 2xx, 0 3xx, 0 4xx, 0 5xx\ntraffic: 1.17KB (1200) total, 40B (40) headers\n"
        )
    }

    #[test]
    fn reads_the_summary_and_log_of_h2load() {
        let log: String = (1..=100).map(|micros| format!("1700000000000000\t200\t{micros}\n")).collect();
        let sample = parse_h2load(&of_h2load(3001, 3001, 1), &log).expect("parses");
        assert_eq!((sample.value, sample.requests, sample.bytes, sample.failures), (1500.5, 3001, 1200, 1));
        assert_eq!((sample.p50_micros, sample.p99_micros), (Some(50.0), Some(99.0)));
        for (what, text, log) in [
            ("none", of_h2load(0, 0, 0), log.as_str()),
            ("other statuses", of_h2load(3000, 2999, 0), &log),
            ("failures", of_h2load(3000, 3000, 31), &log),
            ("no log", of_h2load(3000, 3000, 0), ""),
            ("no summary", "unable to connect".to_owned(), &log),
        ] {
            assert!(parse_h2load(&text, log).is_err(), "{what}");
        }
    }

    #[test]
    fn reads_the_sum_of_iperf() {
        let sample = parse_iperf(r#"{"end":{"sum_received":{"bytes":1000000000,"bits_per_second":8.0e9}}}"#).expect("parses");
        assert_eq!((sample.value, sample.bytes), (8.0, 1_000_000_000));
        assert!(parse_iperf(r#"{"error":"unable to connect to server"}"#).is_err());
        assert!(parse_iperf(r#"{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}"#).is_err());
    }
}
