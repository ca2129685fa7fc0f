use super::super::lock;
use super::*;

async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(test).await
}

fn taken(place: Place) -> Predecessor {
    match place {
        Place::Taken(predecessor) => predecessor,
        Place::Free(_) => panic!("the lock is held"),
    }
}

#[test]
fn lines_that_are_none_of_the_protocol_ask_for_nothing() {
    assert_eq!(["announce 1", "release", "serving"].map(ask), [Some(Ask::Announce), Some(Ask::Release), Some(Ask::Serving)]);
    assert_eq!(["", "release ", "RELEASE", "announce", "announce 2", "released"].map(ask), [None; 6]);
}

#[tokio::test]
async fn one_takes_the_place_of_another() {
    local(async {
        let run_dir = tempfile::tempdir().unwrap();
        let directory = lock::directory(run_dir.path(), "one").unwrap();
        let Place::Free(held) = find(&directory).await.unwrap() else { panic!("nobody holds it") };
        let (door, mut events) = Door::open(&directory).unwrap();
        let newer = taken(find(&directory).await.unwrap());
        assert_eq!(newer.pid, Some(std::process::id()));
        let Some(Event::Announced { id, pid }) = events.recv().await else { panic!("it is announced") };
        assert_eq!(pid, i32::try_from(std::process::id()).ok());

        let (released, grant) = tokio::join!(newer.release(&directory), async {
            let Some(Event::Release(of, grant)) = events.recv().await else { panic!("it asks") };
            assert_eq!(of, id);
            drop((door, held));
            grant.send(())
        });
        grant.unwrap();
        let (lock, newer) = released.unwrap();
        // The newer one's own door stands where the older one's was.
        let (_door, _events) = Door::open(&directory).unwrap();
        let relieved = tokio::task::spawn_local(newer.expect("it lives").relieve());
        assert!(matches!(events.recv().await, Some(Event::Serving(of)) if of == id));
        assert!(!relieved.is_finished(), "the older one lives");
        let third = taken(find(&directory).await.unwrap());
        drop((third, lock));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_is_named_with_what_to_do() {
    local(async {
        let run_dir = tempfile::tempdir().unwrap();
        let directory = lock::directory(run_dir.path(), "one").unwrap();
        let _held = WriterLock::try_take(&directory).unwrap().unwrap();
        let says = |error: HandoverError, more: &str| {
            let text = error.to_string();
            let pid = format!("pid {}", std::process::id());
            for word in [&pid, &lock::file(&directory).display().to_string(), more, "end it", "--instance"] {
                assert!(text.contains(word), "{word:?} in {text}");
            }
        };
        // Nobody is at the door.
        says(find(&directory).await.err().unwrap(), "does not answer");
        // Somebody is, and is deaf.
        let (door, mut events) = Door::open(&directory).unwrap();
        let newer = taken(find(&directory).await.unwrap());
        says(newer.release(&directory).await.err().unwrap(), "did not within");
        // Somebody refuses.
        let newer = taken(find(&directory).await.unwrap());
        let refusing = tokio::task::spawn_local(async move {
            while let Some(event) = events.recv().await {
                drop(event);
            }
        });
        says(newer.release(&directory).await.err().unwrap(), "refused");
        refusing.abort();
        drop(door);
    })
    .await;
}

#[tokio::test]
async fn one_that_is_gone_before_it_answers_leaves_the_lock() {
    local(async {
        let run_dir = tempfile::tempdir().unwrap();
        let directory = lock::directory(run_dir.path(), "one").unwrap();
        let held = WriterLock::try_take(&directory).unwrap().unwrap();
        let (door, mut events) = Door::open(&directory).unwrap();
        let newer = taken(find(&directory).await.unwrap());
        let (released, ()) = tokio::join!(newer.release(&directory), async {
            while !matches!(events.recv().await, Some(Event::Release(..))) {}
            drop((door, held, events));
        });
        let (_lock, predecessor) = released.unwrap();
        assert!(predecessor.is_none(), "there is nobody to relieve");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_agent_is_not_heard_of() {
    local(async {
        let run_dir = tempfile::tempdir().unwrap();
        let directory = lock::directory(run_dir.path(), "one").unwrap();
        let _held = WriterLock::try_take(&directory).unwrap().unwrap();
        let (_door, mut events) = Door::open(&directory).unwrap();
        for words in ["release\n".to_owned(), "x".repeat(1 << 16), String::new()] {
            let mut stream = UnixStream::connect(socket(&directory)).await.unwrap();
            let _ = stream.write_all(words.as_bytes()).await;
            drop(stream);
        }
        let _newer = taken(find(&directory).await.unwrap());
        assert!(matches!(events.recv().await, Some(Event::Announced { id: 3, .. })));
    })
    .await;
}
