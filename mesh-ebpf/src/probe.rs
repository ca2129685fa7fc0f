//! The verdict on request.

use aya_ebpf::programs::XdpContext;
use mesh_common::policy::{Answer, Question};

use crate::connect::evaluate;
use crate::maps::POLICIES;

const XDP_ABORTED: u32 = 0;
const XDP_PASS: u32 = 2;

/// Reads a [`Question`] from the packet's start and writes an [`Answer`] behind it.
#[inline(always)]
pub fn probe(ctx: &XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + size_of::<Question>() + size_of::<Answer>() > end {
        return XDP_ABORTED;
    }
    // SAFETY: both structures lie within the packet, checked just above; they hold integers only, so any bytes are valid.
    let question = unsafe { core::ptr::read_unaligned(start as *const Question) };
    let out = (start + size_of::<Question>()) as *mut Answer;
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    let answer = match unsafe { POLICIES.get(question.program) } {
        Some(program) => {
            let d = evaluate(program, &question.facts, question.identity);
            Answer { allowed: d.allowed as u32, policy: d.policy, dry_run: d.dry_run }
        }
        None => Answer { allowed: Answer::NO_PROGRAM, ..Answer::default() },
    };
    // SAFETY: within the packet, checked above.
    unsafe { core::ptr::write_unaligned(out, answer) };
    XDP_PASS
}
