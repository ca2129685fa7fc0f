use super::*;

#[test]
fn the_request_has_the_kernels_layout() {
    let r = request("10.0.0.1:80".parse().unwrap(), "10.0.0.2:9000".parse().unwrap());
    assert_eq!(r.len(), 72);
    assert_eq!(u32::from_ne_bytes(r[0..4].try_into().unwrap()), 72);
    assert_eq!(&r[16..18], &[libc::AF_INET as u8, 6]);
    assert_eq!(&r[24..28], &[0, 80, 0x23, 0x28]);
    assert_eq!(&r[28..32], &[10, 0, 0, 1]);
    assert_eq!(&r[44..48], &[10, 0, 0, 2]);
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
