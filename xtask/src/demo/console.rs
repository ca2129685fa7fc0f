//! What a person sees of the demo, and the same for machines.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::stage::Stage;

#[derive(Serialize)]
struct Step {
    name: String,
    ok: bool,
    detail: String,
}

#[derive(Serialize)]
struct Steps<'a> {
    steps: &'a [Step],
}

/// Prints steps as they happen and remembers them.
pub struct Console {
    steps: Vec<Step>,
    colours: bool,
    start: Instant,
}

impl Console {
    pub fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { steps: Vec::new(), colours, start: Instant::now() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Runs a step and prints what came of it.
    pub fn step(&mut self, name: &str, work: impl FnOnce() -> Result<String>) {
        let number = self.steps.len() + 1;
        let waiting = format!("  {number:>2} … {name}");
        if self.colours {
            print!("{waiting}");
            let _ = std::io::stdout().flush();
        }
        let start = Instant::now();
        let result = work();
        let took = format!("{:.1} s", start.elapsed().as_secs_f64());
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        if self.colours {
            print!("\r\u{1b}[K");
        }
        let mark = if ok { self.paint("32", "ok  ") } else { self.paint("1;31", "FAIL") };
        println!("  {number:>2} {mark} {} {}", self.paint("1", &format!("{name:<72}")), self.paint("2", &took));
        for line in detail.lines() {
            println!("          {}", if ok { self.paint("2", line) } else { line.to_owned() });
        }
        let _ = std::io::stdout().flush();
        self.steps.push(Step { name: name.to_owned(), ok, detail });
    }

    /// Notes a step that could not be tried.
    pub fn skipped(&mut self, name: &str) {
        self.steps.push(Step { name: name.to_owned(), ok: false, detail: "not tried: what it stands on did not hold".to_owned() });
    }

    /// Draws who runs where.
    pub fn topology(&self, stage: &Stage) {
        println!();
        for node in stage.world.nodes() {
            let pods: Vec<String> = node.pods().iter().map(|pod| format!("{} {}", pod.full_name(), pod.ipv4())).collect();
            println!(
                "       {} {}",
                self.paint("1;36", node.name()),
                self.paint("2", &node.addresses().map(|address| address.to_string()).join(" "))
            );
            for pod in pods {
                println!("        ├─ {pod}");
            }
            println!("        └─ {}", self.paint("36", "mesh-agent"));
        }
        println!(
            "       {} joins them; {} runs beside them at {}",
            self.paint("1;36", "fabric"),
            self.paint("36", "mesh-control"),
            stage.world.control_address()
        );
        println!();
    }

    /// Says what can be done with a demo that stays.
    pub fn kept(&self, id: &str) {
        let world = format!("/run/nodemesh-lab/{id}");
        println!("\n{} keeps running. Try:", self.paint("1", id));
        for (line, what) in [
            ("cargo xtask demo enter frontend".to_owned(), "a shell in a pod"),
            ("cargo xtask demo enter frontend -- curl -s http://10.96.0.10/".to_owned(), "across nodes, encrypted"),
            ("cargo xtask demo enter batch -- curl -sv http://10.96.0.10/".to_owned(), "denied by shop/no-batch-at-web"),
            ("cargo xtask demo enter frontend -- redis-cli -h 10.96.0.20 info server".to_owned(), "redis, across nodes"),
            (format!("$EDITOR {world}/manifests/30-security.yaml"), "policies, followed while running"),
            (format!("tail -f {world}/logs/n2-agent.log"), "what the agent of n2 says"),
            (format!("nsenter --net=/run/netns/{id}-n2 curl -s http://127.0.0.1:15020/metrics"), "metrics of n2"),
            (format!("nsenter --net=/run/netns/{id}-n1 curl -s http://127.0.0.1:15000/"), "the admin endpoint of n1"),
            (format!("nsenter --net=/run/netns/{id}-fabric tcpdump -nAi fabric"), "the link between the nodes"),
            ("cargo xtask demo down".to_owned(), "removes every trace"),
        ] {
            println!("  {line:<84} {}", self.paint("2", &format!("# {what}")));
        }
    }

    /// Writes the steps to a file.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&Steps { steps: &self.steps }).context("writing JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    /// How many steps held, and how many did not.
    pub fn counts(&self) -> (u64, u64) {
        let held = self.steps.iter().filter(|step| step.ok).count() as u64;
        (held, self.steps.len() as u64 - held)
    }

    /// Prints the sum; true if every step held.
    pub fn finish(&self) -> bool {
        let held = self.steps.iter().filter(|step| step.ok).count();
        let all = self.steps.len();
        let line = format!("{held} of {all} steps held in {:.0} s", self.start.elapsed().as_secs_f64());
        println!("\n  {}", if held == all { self.paint("1;32", &line) } else { self.paint("1;31", &line) });
        for step in self.steps.iter().filter(|step| !step.ok) {
            println!("  {} {}", self.paint("1;31", "FAIL"), step.name);
        }
        held == all && all > 0
    }
}
