//! The report for people.

use super::load::{Load, Sample};
use super::path::PathId;
use super::report::{Goal, Report, cpu_per_gigabyte, cpu_per_request, machine};

const NAME: usize = 28;
const COLUMN: usize = 19;

/// Prints figures, ratios with their goals, and what was not as it should be.
pub fn print(report: &Report) {
    let facts = machine();
    let fact = |name: &str| facts.get(name).map_or("?", String::as_str);
    println!("\n{} cores of {}, Linux {}", fact("cores"), fact("processor"), fact("kernel"));
    println!("medians of {} rounds of {} s; mesh of {}\n", report.settings.rounds, report.settings.seconds, report.settings.build);
    figures(report);
    println!();
    costs(report);
    println!();
    ratios(report);
    if let Some(Ok(memory)) = &report.memory {
        let goal = report.goals.iter().find(|goal| goal.figure == "rss_bytes");
        let (idle, busy) = (megabytes(memory.idle_rss_bytes), megabytes(memory.busy_rss_bytes));
        println!(
            "\nagent of a node with {} pods: {idle} MB idle, {busy} MB busy{}; all pods ready after {:.1} s",
            memory.pods,
            goal.map(|goal| format!(" (≤ {:.0} MB, {})", goal.wanted / 1e6, verdict(goal))).unwrap_or_default(),
            memory.ready_seconds
        );
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    let (met, all) = (report.goals.iter().filter(|goal| goal.met).count(), report.goals.len());
    if all > 0 {
        println!("\n{met} of {all} goals met");
    }
}

fn figures(report: &Report) {
    row("", &Load::ALL.map(|load| load.title().to_owned()));
    for path in &report.paths {
        row(path.id.title(), &Load::ALL.map(|load| or_dash(path.value(load).map(|median| value(load, median)))));
    }
}

fn costs(report: &Report) {
    row("", &["p50/p99, 32 conns", "CPU a request", "CPU a GB", "memory each"].map(str::to_owned));
    for path in &report.paths {
        let latency = |percentile: fn(&Sample) -> Option<f64>| path.median(Load::Many, percentile);
        let both = latency(|sample| sample.p50_micros).zip(latency(|sample| sample.p99_micros));
        let cells = [
            both.map(|(half, most)| format!("{:.2}/{:.2} ms", half / 1e3, most / 1e3)),
            path.median(Load::Many, cpu_per_request).map(|seconds| format!("{:.1} µs", seconds * 1e6)),
            path.median(Load::Bulk, cpu_per_gigabyte).map(|seconds| format!("{seconds:.2} s")),
            path.rss_bytes().map(|bytes| format!("{} MB", megabytes(bytes))),
        ];
        row(path.id.title(), &cells.map(or_dash));
    }
}

fn ratios(report: &Report) {
    row("as a ratio to no mesh", &Load::ALL.map(|load| load.title().to_owned()));
    for path in report.paths.iter().filter(|path| path.id.baseline().is_some()) {
        row(path.id.title(), &Load::ALL.map(|load| ratio(report, path.id, load)));
    }
}

fn ratio(report: &Report, id: PathId, load: Load) -> String {
    let goal = report.goals.iter().find(|goal| goal.path == id.key() && goal.figure == load.key());
    let ratio = or_dash(report.ratio(id, load).map(|ratio| format!("{ratio:.2}")));
    match goal {
        Some(goal) => format!("{ratio} (≥{:.2} {})", goal.wanted, verdict(goal)),
        None => ratio,
    }
}

fn verdict(goal: &Goal) -> &'static str {
    if goal.met { "met" } else { "MISSED" }
}

fn row(name: &str, cells: &[String]) {
    // Cells may hold signs that take more bytes than columns; padding counts characters.
    let cells: Vec<String> =
        cells.iter().map(|cell| format!("{cell:>width$}", width = if cell.len() > COLUMN { 22 } else { COLUMN })).collect();
    println!("{name:<NAME$}{}", cells.join(" "));
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// A load's value as people read it.
pub fn value(load: Load, value: f64) -> String {
    if load == Load::Bulk { format!("{value:.2}") } else { thousands(value.round() as u64) }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn digits_in_groups_of_three() {
        assert_eq!([7, 999, 1000, 26_500, 1_234_567].map(thousands), ["7", "999", "1 000", "26 500", "1 234 567"]);
    }
}
