use super::super::hierarchy::given;
use super::super::keeper::NotYet;
use super::super::{Keeper, secret};
use super::*;

const NAME: &str = "mesh/ca";

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn made(now: SystemTime) -> Data {
    secret::written(&make_root(now).unwrap())
}

fn keeper(data: &Data, now: SystemTime) -> Keeper {
    Keeper::given(given(&secret::read(NAME, data).unwrap().unwrap()).unwrap(), now).unwrap()
}

/// Each step, as soon as it may be made, with what it leads to.
fn walk() -> Vec<(Step, SystemTime, Data, State)> {
    let mut now = start();
    let mut data = made(now);
    let mut all = Vec::new();
    for (pause, wanted) in [(0, Step::Prepare), (120, Step::Activate), (60, Step::Taint), (120, Step::Revoke)] {
        now += Duration::from_secs(pause);
        let (next, state) = step(NAME, &data, wanted, &format!("{wanted}-1"), now).unwrap();
        data = next.clone();
        all.push((wanted, now, next, state));
    }
    all
}

#[test]
fn four_steps_lead_from_one_root_to_another() {
    let before = made(start());
    let all = walk();
    let phases: Vec<Phase> = all.iter().map(|(.., state)| state.phase).collect();
    assert_eq!(phases, [Phase::Prepared, Phase::Activated, Phase::Tainted, Phase::Idle]);
    let roots: Vec<usize> = all.iter().map(|(_, now, data, _)| keeper(data, *now).current().roots().len()).collect();
    assert_eq!(roots, [2, 2, 2, 1]);
    let (_, _, last, state) = &all[3];
    assert_eq!(last.keys().map(String::as_str).collect::<Vec<_>>(), ["ca.crt", "rotation", "tls.crt", "tls.key"]);
    assert_ne!(last["tls.key"], before["tls.key"]);
    assert_eq!(last["ca.crt"], last["tls.crt"]);
    assert_eq!((state.old.as_ref(), state.new.as_ref()), (None, all[0].3.new.as_ref()));
    // And again.
    step(NAME, last, Step::Prepare, "prepare-2", start()).unwrap();
}

#[test]
fn the_bundle_changes_where_agents_are_to_renew_and_only_there() {
    let all = walk();
    let bundle = |index: usize| &all[index].2["ca.crt"];
    assert_eq!(bundle(0), bundle(1), "activating renews nothing");
    assert_ne!(bundle(1), bundle(2));
    assert_ne!(bundle(2), bundle(3));
}

#[test]
fn a_replica_that_slept_through_steps_knows_that_a_rotation_made_them() {
    let all = walk();
    let old = given(&secret::read(NAME, &made(start())).unwrap().unwrap()).unwrap().signer.certificate;
    let signs = |index: usize| {
        let (_, now, data, state) = &all[index];
        let signer = given(&secret::read(NAME, data).unwrap().unwrap()).unwrap().signer.certificate;
        assert_eq!(state.age(*now), Some(Duration::ZERO));
        (state.activated(&signer), state.activated(&old))
    };
    assert_eq!([0, 1, 2, 3].map(signs), [(false, false), (true, false), (true, false), (true, false)]);
    assert_eq!((State::default().activated(&old), State::default().age(start())), (false, None));
}

#[test]
fn the_old_key_is_gone_once_the_new_one_signs() {
    let all = walk();
    assert!(all[0].2.contains_key("next.key"));
    for (_, _, data, _) in &all[1..] {
        assert_eq!(data.keys().filter(|key| key.ends_with(".key")).collect::<Vec<_>>(), ["tls.key"]);
    }
}

#[test]
fn a_replica_takes_each_step_from_the_one_before() {
    let mut present = keeper(&made(start()), start());
    let mut data = made(start());
    present.take(keeper(&data, start()));
    for (wanted, now) in [(Step::Prepare, 0), (Step::Activate, 120), (Step::Taint, 180), (Step::Revoke, 300)] {
        let now = start() + Duration::from_secs(now);
        data = step(NAME, &data, wanted, "r", now).unwrap().0;
        let next = keeper(&data, now);
        let young = present.may_give_way_to(&next, Duration::ZERO, now);
        assert_eq!(young, if wanted == Step::Activate { Err(NotYet::TooYoung) } else { Ok(()) }, "{wanted}");
        present.may_give_way_to(&next, PROJECTION, now).unwrap();
        // What signed before is trusted by whoever has the roots of the step after it.
        if wanted != Step::Revoke {
            present.is_trusted_by(next.current().roots(), now).unwrap();
        }
        present = next;
    }
}

#[test]
fn steps_come_in_their_order_and_not_too_early() {
    let data = made(start());
    let refused = |data: &Data, wanted, after: u64| {
        step(NAME, data, wanted, "r", start() + Duration::from_secs(after)).map(drop).unwrap_err().to_string()
    };
    assert_eq!(refused(&data, Step::Revoke, 0), "revoke does not follow: the rotation is idle; what follows is prepare");
    let (data, _) = step(NAME, &data, Step::Prepare, "r", start()).unwrap();
    assert_eq!(refused(&data, Step::Prepare, 0), "prepare does not follow: the rotation is prepared; what follows is activate, or abort");
    assert_eq!(refused(&data, Step::Activate, 20), "activate is too early by 100 s: agents may not know the new root yet");
    let (data, _) = step(NAME, &data, Step::Activate, "r", start() + PROJECTION).unwrap();
    assert!(refused(&data, Step::Abort, 200).contains("what follows is taint"));
    assert!(refused(&data, Step::Taint, 121).contains("too early by 59 s"));
    let (data, _) = step(NAME, &data, Step::Taint, "r", start() + PROJECTION + SETTLE).unwrap();
    assert!(refused(&data, Step::Revoke, 190).contains("may not have renewed"));
    // A clock that was set back waits anew, and does not go wrong.
    assert!(step(NAME, &data, Step::Revoke, "r", UNIX_EPOCH).is_err());
}

#[test]
fn what_was_prepared_can_be_given_up() {
    let data = made(start());
    let (prepared, _) = step(NAME, &data, Step::Prepare, "r", start()).unwrap();
    let (mut after, state) = step(NAME, &prepared, Step::Abort, "s", start()).unwrap();
    assert_eq!((state.phase, state.request.as_str()), (Phase::Idle, "s"));
    after.remove("rotation");
    assert_eq!(after, data);
}

#[test]
fn anothers_authority_is_left_alone() {
    let root = make_root(start()).unwrap();
    let between = hierarchy::make_intermediate(&root, start()).unwrap();
    let mut data = secret::written(&between);
    put(&mut data, "ca.crt", &bundle(&[&root.certificate]));
    let refused = |data: &Data| step(NAME, data, Step::Prepare, "r", start()).map(drop).unwrap_err().to_string();
    assert!(refused(&data).starts_with("the authority in Secret mesh/ca is not the mesh's own to change"));
    let own = secret::written(&root);
    let istio: Data =
        [("ca-cert.pem", "tls.crt"), ("ca-key.pem", "tls.key")].into_iter().map(|(to, from)| (to.to_owned(), own[from].clone())).collect();
    assert!(refused(&istio).contains("not the mesh's own"));
    assert!(refused(&Data::new()).contains("not the mesh's own"));
}

#[test]
fn a_note_that_is_none_is_said_and_changes_nothing() {
    let mut data = made(start());
    put(&mut data, "rotation", "soon");
    let refused = step(NAME, &data, Step::Prepare, "r", start()).map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("Secret mesh/ca, key rotation: is no note of a rotation"), "{refused}");
}

#[test]
fn words_are_read_as_they_are_written() {
    for (name, step) in Step::ALL {
        assert_eq!((name.parse(), step.to_string().as_str()), (Ok(step), name));
    }
    assert_eq!("rotate".parse::<Step>(), Err(()));
}
