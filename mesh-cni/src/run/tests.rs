#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;
use crate::protocol::{Failure, Request, receive, send};

/// A place for a socket, gone at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("mesh-cni-{}-{name}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Place(path)
    }

    /// Answers one request.
    fn answer(&self, answer: Answer) -> std::thread::JoinHandle<Request> {
        let listener = UnixListener::bind(&self.0).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = receive(&mut stream).unwrap();
            send(&mut stream, &answer).unwrap();
            request
        })
    }

    fn conf(&self, more: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"k","socket":"{}","timeoutSeconds":1,"prevResult":{RESULT}{more}}}"#, self.0.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const RESULT: &str = r#"{"cniVersion":"1.0.0", "ips":[{"address":"10.1.0.7/24"}],  "odd": 1.50}"#;

fn environment(command: &'static str) -> impl Fn(&str) -> Option<String> {
    move |name| {
        Some(
            match name {
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => "c1",
                "CNI_NETNS" => "/run/netns/cni-1",
                "CNI_IFNAME" => "eth0",
                "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=0f3a",
                _ => return None,
            }
            .into(),
        )
    }
}

#[test]
fn add_prints_what_came_before_as_it_was() {
    for answer in [Answer::Captured, Answer::Outside] {
        let place = Place::new(&format!("add-{answer:?}"));
        let agent = place.answer(answer);
        assert_eq!(run(environment("ADD"), place.conf("").as_bytes()).unwrap(), RESULT);
        let Command::Add(asked) = agent.join().unwrap().command else { panic!() };
        assert_eq!(asked.addresses, vec!["10.1.0.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(asked.pod.uid.as_deref(), Some("0f3a"));
    }
}

#[test]
fn add_fails_as_the_agent_says() {
    for (again, code) in [(true, CniError::TRY_AGAIN), (false, CniError::REFUSED)] {
        let place = Place::new(&format!("refused-{again}"));
        let agent = place.answer(Answer::Failed(Failure { message: "it waits for a certificate".into(), again }));
        let error = run(environment("ADD"), place.conf("").as_bytes()).unwrap_err();
        assert_eq!(error.code, code);
        assert_eq!(error.message, "pod shop/cart-0 is held: it waits for a certificate");
        agent.join().unwrap();
    }
}

/// An answer that is none must not let the pod start.
#[test]
fn an_answer_to_another_question_is_a_refusal() {
    let place = Place::new("done");
    let agent = place.answer(Answer::Done);
    assert_eq!(run(environment("ADD"), place.conf("").as_bytes()).unwrap_err().code, CniError::REFUSED);
    agent.join().unwrap();
}

#[test]
fn without_an_agent_the_policy_decides() {
    let place = Place::new("down");
    let error = run(environment("ADD"), place.conf("").as_bytes()).unwrap_err();
    assert_eq!(error.code, CniError::TRY_AGAIN);
    assert!(error.message.contains("pod shop/cart-0 is held") && error.message.contains(".sock"), "{}", error.message);
    let allowed = place.conf(r#","onUnreachable":"allow-unmeshed""#);
    assert_eq!(run(environment("ADD"), allowed.as_bytes()).unwrap(), RESULT);
}

/// An agent that is there and does not answer is not one that is absent.
#[test]
fn an_agent_that_hangs_holds_the_pod_under_any_policy() {
    let place = Place::new("hangs");
    let _listener = UnixListener::bind(&place.0).unwrap();
    let allowed = place.conf(r#","onUnreachable":"allow-unmeshed""#);
    assert_eq!(run(environment("ADD"), allowed.as_bytes()).unwrap_err().code, CniError::TRY_AGAIN);
}

#[test]
fn an_agent_that_comes_late_is_found() {
    let place = Place::new("late");
    let path = place.0.clone();
    let agent = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(250));
        let listener = UnixListener::bind(path).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _: Request = receive(&mut stream).unwrap();
        send(&mut stream, &Answer::Captured).unwrap();
    });
    let conf = place.conf("").replace(r#""timeoutSeconds":1"#, r#""timeoutSeconds":60"#);
    assert_eq!(run(environment("ADD"), conf.as_bytes()).unwrap(), RESULT);
    agent.join().unwrap();
}

#[test]
fn del_never_fails() {
    let place = Place::new("del");
    assert_eq!(run(environment("DEL"), place.conf("").as_bytes()).unwrap(), "");
    assert_eq!(run(environment("DEL"), b"nonsense").unwrap(), "");
    assert_eq!(run(|name| (name == "CNI_COMMAND").then(|| "DEL".into()), b"{}").unwrap(), "");
    let agent = place.answer(Answer::Done);
    run(environment("DEL"), place.conf("").as_bytes()).unwrap();
    assert!(matches!(agent.join().unwrap().command, Command::Del(Detachment { container, .. }) if &*container == "c1"));
}

#[test]
fn check_status_and_gc_are_answered() {
    let place = Place::new("check");
    assert_eq!(run(environment("STATUS"), place.conf("").as_bytes()).unwrap_err().code, CniError::NOT_AVAILABLE);
    assert_eq!(run(environment("CHECK"), place.conf("").as_bytes()).unwrap_err().code, CniError::TRY_AGAIN);
    let agent = place.answer(Answer::Done);
    assert_eq!(run(environment("STATUS"), place.conf("").as_bytes()).unwrap(), "");
    agent.join().unwrap();
    let place = Place::new("gc");
    let agent = place.answer(Answer::Done);
    let more = r#","cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#;
    assert_eq!(run(environment("GC"), place.conf(more).as_bytes()).unwrap(), "");
    assert_eq!(agent.join().unwrap().command, Command::Gc(vec!["c1".into()]));
}

#[test]
fn version_is_told_and_what_is_no_command_is_an_error() {
    let text = run(environment("VERSION"), br#"{"cniVersion":"0.4.0"}"#).unwrap();
    assert_eq!(text, r#"{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}"#);
    assert_eq!(run(|_| None, b"").unwrap_err().code, CniError::ENVIRONMENT);
    assert_eq!(run(environment("SING"), b"").unwrap_err().code, CniError::ENVIRONMENT);
    let printed = print_error(&CniError::new(11, "no"), br#"{"cniVersion":"0.4.0"}"#);
    assert_eq!(printed, r#"{"cniVersion":"0.4.0","code":11,"msg":"nodemesh: no"}"#);
}

/// A container of another orchestrator on the node has no pod to ask for.
#[test]
fn what_is_no_pod_is_let_through() {
    let place = Place::new("nopod");
    let none = |name: &str| if name == "CNI_ARGS" { None } else { environment("ADD")(name) };
    assert_eq!(run(none, place.conf("").as_bytes()).unwrap(), RESULT);
}
