use super::{Input, Reading};

pub(super) fn convert(_input: &mut Input<'_>) -> Reading {
    Reading::Foreign
}
