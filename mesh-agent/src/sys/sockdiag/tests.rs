use super::*;

#[test]
fn the_request_has_the_kernels_layout() {
    let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
    let r = request(SOCK_DESTROY, NLM_F_REQUEST, "10.0.0.1:80".parse().unwrap(), "10.0.0.2:9000".parse().unwrap(), cookie);
    assert_eq!(r.len(), 72);
    assert_eq!(u32::from_ne_bytes(r[0..4].try_into().unwrap()), 72);
    assert_eq!(&r[16..18], &[libc::AF_INET as u8, 6]);
    assert_eq!(&r[24..28], &[0, 80, 0x23, 0x28]);
    assert_eq!(&r[28..32], &[10, 0, 0, 1]);
    assert_eq!(&r[44..48], &[10, 0, 0, 2]);
    assert_eq!(r[64..], cookie);
}

#[test]
fn an_answer_is_an_errno_or_nothing() {
    let mut ack = [0u8; 36];
    ack[4] = 2;
    assert_eq!(errno_of(&ack), Some(0));
    ack[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
    assert_eq!(errno_of(&ack), Some(libc::ENOENT));
    assert_eq!(errno_of(&ack[..10]), None);
    assert_eq!(errno_of(&[]), None);
}

#[test]
fn a_listener_is_no_connection() {
    let remote = "10.0.0.2:9000".parse().unwrap();
    // As the kernel has it: a header, then family, state, timer, retransmissions, and the socket's ends with its cookie.
    let mut answer = vec![0; HEADER];
    answer[4] = 20;
    answer.extend([2, 1, 0, 0, 0, 80, 0x23, 0x28]);
    answer.extend([0; 36]);
    answer.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    let found = Found::read(&answer).unwrap();
    assert_eq!((found.cookie, found.is_connection(remote)), ([1, 2, 3, 4, 5, 6, 7, 8], true));
    answer[HEADER + 1] = LISTEN;
    assert!(!Found::read(&answer).unwrap().is_connection(remote));
    answer[HEADER + 1] = 1;
    answer[HEADER + 6] = 0;
    assert!(!Found::read(&answer).unwrap().is_connection(remote), "it is with somebody else");
    assert_eq!(Found::read(&answer[..60]), None);
    answer[4] = 2;
    assert_eq!(Found::read(&answer), None);
}
